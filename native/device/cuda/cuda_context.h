// What the CUDA operations share: the stream on which all of them run in order, facts of the GPU, and scratch memory.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "native/device/cuda/cuda_check.h"

namespace tinyllama {

class CudaContext {
 public:
  // Of device `ordinal`. Throws Error where it cannot be used.
  explicit CudaContext(int ordinal);
  ~CudaContext();
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  cudaStream_t stream() const { return stream_; }
  const cudaDeviceProp& properties() const { return properties_; }
  int multiprocessors() const { return properties_.multiProcessorCount; }

  // At least `bytes` of device memory, 256-byte aligned, of undefined content, for one operation: the next one may get the same memory.
  // Grows at the first use of a size, never while a graph is captured (then it throws), and never shrinks.
  void* scratch(std::size_t bytes);
  std::size_t scratch_bytes() const { return scratch_bytes_; }
  // Counts the times that the scratch memory has moved: what was recorded under another number holds a dead address.
  std::uint64_t scratch_generation() const { return scratch_generation_; }

 private:
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  void* scratch_ = nullptr;
  std::size_t scratch_bytes_ = 0;
  std::uint64_t scratch_generation_ = 0;
};

}  // namespace tinyllama
