#include "native/device/cuda/cublaslt_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <system_error>

#include "native/core/error.h"

namespace tinyllama::cublaslt {
namespace {

namespace fs = std::filesystem;

constexpr const char* sonames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The sub-folders of `folder` whose names start with `prefix`, the latest name first.
std::vector<fs::path> folders_starting(const fs::path& folder, const std::string& prefix) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    if (entry->path().filename().string().starts_with(prefix)) found.push_back(entry->path());
  std::sort(found.rbegin(), found.rend());
  return found;
}

void add_folder(std::vector<std::string>& folders, const fs::path& folder) {
  std::error_code error;
  if (fs::is_directory(folder, error) && std::find(folders.begin(), folders.end(), folder.string()) == folders.end())
    folders.push_back(folder.string());
}

void add_wheels(std::vector<std::string>& folders, const fs::path& packages) {
  for (const char* wheel : {"nvidia/cu13/lib", "nvidia/cublas/lib"}) add_folder(folders, packages / wheel);
}

// PREFIX/lib/python3.N/{site,dist}-packages, and Debian's PREFIX/lib/python3/dist-packages.
void add_python_prefix(std::vector<std::string>& folders, const fs::path& prefix) {
  for (const char* library : {"lib", "lib64"})
    for (const fs::path& python : folders_starting(prefix / library, "python3"))
      for (const char* packages : {"site-packages", "dist-packages"}) add_wheels(folders, python / packages);
}

// bin/python3 may be a link (of a virtual environment, of a version manager): both its own prefix and that of what it points to count.
void add_pythons_on_path(std::vector<std::string>& folders) {
  std::istringstream path(variable("PATH"));
  for (std::string bin; std::getline(path, bin, ':');) {
    std::error_code error;
    const fs::path python = fs::path(bin) / "python3";
    if (bin.empty() || !fs::exists(python, error)) continue;
    add_python_prefix(folders, fs::path(bin).parent_path());
    const fs::path target = fs::canonical(python, error);
    if (!error) add_python_prefix(folders, target.parent_path().parent_path());
  }
}

template <class Function>
bool resolve(void* handle, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(handle, name));
  return function != nullptr;
}

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

std::vector<std::string> library_folders() {
  std::vector<std::string> folders;
  for (const char* name : {"CUDA_HOME", "CUDA_PATH"})
    if (!variable(name).empty()) add_folder(folders, fs::path(variable(name)) / "lib64");
  add_folder(folders, "/usr/local/cuda/lib64");
  if (!variable("VIRTUAL_ENV").empty()) add_python_prefix(folders, variable("VIRTUAL_ENV"));
  if (!variable("CONDA_PREFIX").empty()) {
    add_folder(folders, fs::path(variable("CONDA_PREFIX")) / "lib");
    add_python_prefix(folders, variable("CONDA_PREFIX"));
  }
  add_pythons_on_path(folders);
  if (!variable("HOME").empty()) add_python_prefix(folders, fs::path(variable("HOME")) / ".local");
  add_python_prefix(folders, "/usr/local");
  add_python_prefix(folders, "/usr");
  return folders;
}

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
  const std::string named = variable("TINYLLAMA_CUBLASLT");
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
  for (const std::string& folder : library_folders()) {
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
