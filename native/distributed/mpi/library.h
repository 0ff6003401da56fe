// What the MPI library offers to the engine, which loads it at run time. `mpi_interface_version` guards against a stale library.
#pragma once
#include <cstddef>

#include "native/distributed/communicator.h"

namespace tinyllama {

constexpr int mpi_interface_version = 1;

struct MpiLibrary {
  int interface_version;
  // Null with the cause in `error`. The caller deletes the communicator.
  Communicator* (*open)(int rank, int size, char* error, std::size_t error_size);
};

}  // namespace tinyllama

extern "C" __attribute__((visibility("default"))) const tinyllama::MpiLibrary* tinyllama_mpi_library();
