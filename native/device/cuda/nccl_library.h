// NCCL, found and opened at run time: the engine is built without it, and one GPU needs none.
//
// Where it is looked for, in this order; the first file that opens, has the entry points and is 2.18 or later is taken:
//   1. TINYLLAMA_NCCL_LIBRARY: the library's file. One that does not serve is an error, not a reason to look further.
//   2. The loader's own path (LD_LIBRARY_PATH, ld.so.cache): libnccl.so.2.
//   3. A CUDA toolkit, then the Python wheels nvidia-nccl-cu13 and nvidia-nccl-cu12 (nvidia/nccl/lib): library_folders.h.
#pragma once
#include <string>

#include "native/device/cuda/nccl_declarations.h"

namespace tinyllama::nccl {

class Library {
 public:
  // Opened at the first call, never closed. Throws Error where none is found.
  static const Library& find();

  const Functions& functions() const { return functions_; }
  // "2.30.7"
  std::string version() const;
  // Throws Error with the call's name, NCCL's word for `status` and, of a communicator, its last message.
  [[noreturn]] void fail(Status status, const char* call, Handle handle) const;

 private:
  Library() = default;
  // Whether `file` serves; else `reason` says why not.
  bool open(const std::string& file, std::string& reason);

  Functions functions_{};
};

}  // namespace tinyllama::nccl
