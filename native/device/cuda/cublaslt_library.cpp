#include "native/device/cuda/cublaslt_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "native/core/error.h"
#include "native/device/cuda/library_folders.h"
#include "native/device/cuda/library_function.h"

namespace tinyllama::cublaslt {
namespace {

namespace fs = std::filesystem;

constexpr const char* sonames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};
const std::vector<std::string> wheels = {"nvidia/cu13/lib", "nvidia/cublas/lib"};

// The first name that the library lacks, or null.
const char* resolve_all(void* handle, Functions& to) {
#define RESOLVE(name) \
  if (!resolve(handle, #name, to.name)) return #name
  RESOLVE(cublasLtGetVersion);
  RESOLVE(cublasLtGetStatusString);
  RESOLVE(cublasLtCreate);
  RESOLVE(cublasLtDestroy);
  RESOLVE(cublasLtMatmulDescCreate);
  RESOLVE(cublasLtMatmulDescDestroy);
  RESOLVE(cublasLtMatmulDescSetAttribute);
  RESOLVE(cublasLtMatrixLayoutCreate);
  RESOLVE(cublasLtMatrixLayoutDestroy);
  RESOLVE(cublasLtMatmulPreferenceCreate);
  RESOLVE(cublasLtMatmulPreferenceDestroy);
  RESOLVE(cublasLtMatmulPreferenceSetAttribute);
  RESOLVE(cublasLtMatmulAlgoGetHeuristic);
  RESOLVE(cublasLtMatmulAlgoCheck);
  RESOLVE(cublasLtMatmulAlgoConfigGetAttribute);
  RESOLVE(cublasLtMatmul);
#undef RESOLVE
  return nullptr;
}

}  // namespace

std::unique_ptr<Library> Library::open(const std::string& file, std::string& reason) {
  std::unique_ptr<Library> library(new Library);
  library->handle_ = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library->handle_ == nullptr) {
    const char* word = dlerror();
    reason = word == nullptr ? file + " does not open" : word;
    return nullptr;
  }
  if (const char* missing = resolve_all(library->handle_, library->functions_)) {
    reason = file + " has no " + missing;
    return nullptr;
  }
  const std::size_t major = library->functions_.cublasLtGetVersion() / 10000;
  if (major != 12 && major != 13) {
    reason = file + " is version " + library->version() + "; 12 and 13 are supported";
    return nullptr;
  }
  Dl_info place{};
  const bool known = dladdr(reinterpret_cast<void*>(library->functions_.cublasLtMatmul), &place) != 0 && place.dli_fname != nullptr;
  library->path_ = known ? place.dli_fname : file;
  return library;
}

std::unique_ptr<Library> Library::find(std::string& reason) {
  const char* wish = std::getenv("TINYLLAMA_CUBLASLT");
  const std::string named = wish == nullptr ? "" : wish;
  if (named == "none") {
    reason = "TINYLLAMA_CUBLASLT is none";
    return nullptr;
  }
  if (!named.empty()) {
    auto library = open(named, reason);
    require(library != nullptr, "cuBLASLt cannot be used: " + reason +
                                    "; TINYLLAMA_CUBLASLT must name libcublasLt.so.13 or .12, or be \"none\" for the engine's own kernels");
    return library;
  }
  std::string last;
  for (const char* soname : sonames)
    if (auto library = open(soname, last)) return library;
  reason = "no libcublasLt.so.13 or .12 on the loader's path, in a CUDA toolkit or in a Python environment; TINYLLAMA_CUBLASLT can name it";
  for (const std::string& folder : library_folders(wheels)) {
    for (const char* soname : sonames) {
      const fs::path file = fs::path(folder) / soname;
      std::error_code error;
      if (!fs::exists(file, error)) continue;
      if (auto library = open(file.string(), last)) return library;
      reason = last;
    }
  }
  return nullptr;
}

Library::~Library() {
  // Not closed: CUDA calls into the library's tables at the process's end, and a later engine finds it mapped already.
}

std::string Library::version() const {
  const std::size_t number = functions_.cublasLtGetVersion();
  return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." + std::to_string(number % 100);
}

void Library::check(Status status, const char* call) const {
  if (status == status_success) return;
  throw Error(std::string("cuBLASLt ") + version() + ": " + call + " failed: " + functions_.cublasLtGetStatusString(status) + " (" +
              std::to_string(status) + ")");
}

}  // namespace tinyllama::cublaslt
