// cuBLASLt, found and opened at run time: the engine is built without it and runs without it.
//
// Where it is looked for, in this order; the first file that opens and has the entry points is taken:
//   1. TINYLLAMA_CUBLASLT: the library's file, or "none" (then nothing is looked for). A file that does not open is an error, not a reason to
//      look further.
//   2. The loader's own path (LD_LIBRARY_PATH, ld.so.cache): libcublasLt.so.13, then .12.
//   3. $CUDA_HOME/lib64, $CUDA_PATH/lib64, /usr/local/cuda/lib64.
//   4. The Python wheels nvidia-cublas (nvidia/cu13/lib) and nvidia-cublas-cu12 (nvidia/cublas/lib) in the site-packages of $VIRTUAL_ENV,
//      $CONDA_PREFIX (whose own lib counts too), of the prefix of every python3 on PATH, of ~/.local, /usr/local and /usr.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "native/device/cuda/cublaslt_declarations.h"

namespace tinyllama::cublaslt {

class Library {
 public:
  // Null where none is found, or where TINYLLAMA_CUBLASLT is "none"; `reason` then says why, in words for the user.
  // Throws Error where TINYLLAMA_CUBLASLT names a file that cannot serve.
  static std::unique_ptr<Library> find(std::string& reason);
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  const Functions& functions() const { return functions_; }
  const std::string& path() const { return path_; }
  // "13.1.1"
  std::string version() const;
  // Throws Error with the call's name and the library's word for `status` unless it is success.
  void check(Status status, const char* call) const;

 private:
  Library() = default;
  static std::unique_ptr<Library> open(const std::string& file, std::string& reason);

  void* handle_ = nullptr;
  std::string path_;
  Functions functions_{};
};

// The folders of 3. and 4. above that exist, in order.
std::vector<std::string> library_folders();

}  // namespace tinyllama::cublaslt
