// Every CUDA call's answer is looked at; a failure becomes the engine's Error with the call, its place and what the driver says.
#pragma once
#include <cuda_runtime.h>

#include <string>

#include "native/core/error.h"

namespace tinyllama {

inline void check_cuda(cudaError_t status, const char* call, const char* file, int line) {
  if (status == cudaSuccess) return;
  throw Error(std::string(status == cudaErrorMemoryAllocation ? "out of memory: " : "CUDA: ") + call + " failed at " + file + ":" +
              std::to_string(line) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")");
}

}  // namespace tinyllama

#define CHECK_CUDA(call) ::tinyllama::check_cuda((call), #call, __FILE__, __LINE__)
// After a kernel launch: the launch itself; what fails later shows at the next synchronization.
#define CHECK_LAUNCH(kernel) ::tinyllama::check_cuda(cudaGetLastError(), kernel, __FILE__, __LINE__)
