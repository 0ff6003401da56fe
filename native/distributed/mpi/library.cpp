#include "native/distributed/mpi/library.h"

#include <cstdio>
#include <exception>

#include "native/distributed/mpi/mpi_communicator.h"
#include "native/distributed/mpi/mpi_world.h"

namespace tinyllama {
namespace {

Communicator* open(int rank, int size, char* error, std::size_t error_size) {
  try {
    return make_mpi_communicator(mpi_world(rank, size)).release();
  } catch (const std::exception& cause) {
    std::snprintf(error, error_size, "%s", cause.what());
    return nullptr;
  }
}

constexpr MpiLibrary library{mpi_interface_version, open};

}  // namespace
}  // namespace tinyllama

const tinyllama::MpiLibrary* tinyllama_mpi_library() { return &tinyllama::library; }
