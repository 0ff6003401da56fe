#include "native/distributed/mpi_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>

#include "native/core/engine_library.h"
#include "native/core/error.h"
#include "native/distributed/mpi/library.h"

namespace tinyllama {
namespace {

const MpiLibrary& load() {
  const std::string path = engine_library_path("TINYLLAMA_MPI_LIBRARY", "libtinyllama_mpi.so");
  require(std::filesystem::exists(path), "several ranks on CPUs need MPI, and the engine was built without it (there is no " + path +
                                             "): install an MPI (Debian: libopenmpi-dev openmpi-bin), then npm run build:native");
  // Global: MPI's plugins look for libmpi's names among those of the process. Never closed: MPI stays until the process ends.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  require(handle != nullptr, std::string("MPI cannot be loaded: ") + (handle ? "" : dlerror()) +
                                 ": is the MPI that the engine was built with on this machine, too?");
  using Entry = const MpiLibrary* (*)();
  const auto entry = reinterpret_cast<Entry>(dlsym(handle, "tinyllama_mpi_library"));
  require(entry != nullptr && entry()->interface_version == mpi_interface_version,
          path + " is of another version of tinyllama: build it again (npm run build:native)");
  return *entry();
}

}  // namespace

std::unique_ptr<Communicator> open_mpi(int rank, int size) {
  static const MpiLibrary& library = load();
  char error[1024] = "";
  std::unique_ptr<Communicator> communicator(library.open(rank, size, error, sizeof(error)));
  require(communicator != nullptr, error);
  return communicator;
}

}  // namespace tinyllama
