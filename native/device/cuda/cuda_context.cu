#include "native/device/cuda/cuda_context.h"

#include <string>

namespace tinyllama {

CudaContext::CudaContext(int ordinal) {
  CHECK_CUDA(cudaSetDevice(ordinal));
  CHECK_CUDA(cudaGetDeviceProperties(&properties_, ordinal));
  require(properties_.major >= 8, std::string("GPU ") + properties_.name + " has compute capability " + std::to_string(properties_.major) +
                                      "." + std::to_string(properties_.minor) + "; the CUDA engine needs 8.0 (Ampere) or later");
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

CudaContext::~CudaContext() {
  cudaFree(scratch_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

void* CudaContext::scratch(std::size_t bytes) {
  if (bytes <= scratch_bytes_) return scratch_;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  CHECK_CUDA(cudaStreamIsCapturing(stream_, &status));
  require(status == cudaStreamCaptureStatusNone, "scratch memory must have its size before a graph is captured");
  CHECK_CUDA(cudaStreamSynchronize(stream_));
  ++scratch_generation_;  // before the memory goes: an allocation that fails has moved it too
  CHECK_CUDA(cudaFree(scratch_));
  scratch_ = nullptr;
  scratch_bytes_ = 0;
  CHECK_CUDA(cudaMalloc(&scratch_, bytes));
  scratch_bytes_ = bytes;
  return scratch_;
}

}  // namespace tinyllama
