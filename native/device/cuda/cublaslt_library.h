// cuBLASLt, found and opened at run time: the engine is built without it and runs without it.
//
// Where it is looked for, in this order; the first file that opens and has the entry points is taken:
//   1. TINYLLAMA_CUBLASLT: the library's file, or "none" (then nothing is looked for). A file that does not open is an error, not a reason to
//      look further.
//   2. The loader's own path (LD_LIBRARY_PATH, ld.so.cache): libcublasLt.so.13, then .12.
//   3. A CUDA toolkit, then the Python wheels nvidia-cublas (nvidia/cu13/lib) and nvidia-cublas-cu12 (nvidia/cublas/lib): library_folders.h.
#pragma once
#include <memory>
#include <string>

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

}  // namespace tinyllama::cublaslt
