#include "native/device/cuda/nccl_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

#include "native/core/error.h"
#include "native/device/cuda/library_folders.h"
#include "native/device/cuda/library_function.h"

namespace tinyllama::nccl {
namespace {

constexpr const char* soname = "libnccl.so.2";

// The first name that the library lacks, or null.
const char* resolve_all(void* handle, Functions& to) {
#define RESOLVE(name) \
  if (!resolve(handle, #name, to.name)) return #name
  RESOLVE(ncclGetVersion);
  RESOLVE(ncclGetUniqueId);
  RESOLVE(ncclCommInitRankConfig);
  RESOLVE(ncclCommSplit);
  RESOLVE(ncclCommFinalize);
  RESOLVE(ncclCommDestroy);
  RESOLVE(ncclCommAbort);
  RESOLVE(ncclCommGetAsyncError);
  RESOLVE(ncclGetErrorString);
  RESOLVE(ncclGetLastError);
  RESOLVE(ncclAllGather);
  RESOLVE(ncclReduceScatter);
  RESOLVE(ncclAllReduce);
  RESOLVE(ncclSend);
  RESOLVE(ncclRecv);
  RESOLVE(ncclGroupStart);
  RESOLVE(ncclGroupEnd);
#undef RESOLVE
  return nullptr;
}

}  // namespace

bool Library::open(const std::string& file, std::string& reason) {
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* word = dlerror();
    reason = word == nullptr ? file + " does not open" : word;
    return false;
  }
  int number = 0;
  if (const char* missing = resolve_all(handle, functions_)) {
    reason = file + " has no " + missing + ", which NCCL has from 2.18 on";
    return false;
  }
  if (functions_.ncclGetVersion(&number) != status_success || number < oldest_version) {
    reason = file + " is version " + std::to_string(number) + "; 2.18 (21800) or later is needed";
    return false;
  }
  return true;
}

const Library& Library::find() {
  static const Library once = [] {
    // Sums inside the switch (NVLS) have an order of their own, and are left out unless asked for.
    setenv("NCCL_NVLS_ENABLE", "0", 0);
    Library library;
    std::string reason;
    if (const char* named = std::getenv("TINYLLAMA_NCCL_LIBRARY"); named != nullptr && *named != '\0') {
      const bool serves = library.open(named, reason);
      require(serves, "NCCL cannot be used: " + reason + "; TINYLLAMA_NCCL_LIBRARY must name libnccl.so.2");
      return library;
    }
    std::string ignored;
    if (library.open(soname, ignored)) return library;
    reason = "no libnccl.so.2 on the loader's path, in a CUDA toolkit or in a Python environment";
    for (const std::string& folder : library_folders({"nvidia/nccl/lib"})) {
      const std::filesystem::path file = std::filesystem::path(folder) / soname;
      std::error_code error;
      if (std::filesystem::exists(file, error) && library.open(file.string(), reason)) return library;
    }
    throw Error("several GPUs need NCCL: " + reason +
                ". Next: pip install nvidia-nccl-cu13, or Debian's libnccl2; or name its file in TINYLLAMA_NCCL_LIBRARY");
  }();
  return once;
}

std::string Library::version() const {
  int number = 0;
  functions_.ncclGetVersion(&number);
  return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." + std::to_string(number % 100);
}

void Library::fail(Status status, const char* call, Handle handle) const {
  const char* last = functions_.ncclGetLastError(handle);
  throw Error("NCCL " + version() + ": " + call + " failed: " + functions_.ncclGetErrorString(status) +
              (last == nullptr || *last == '\0' ? "" : std::string(": ") + last) + "; NCCL_DEBUG=INFO shows more");
}

}  // namespace tinyllama::nccl
