// What the CUDA library offers to the engine, which loads it at run time: plain C entry points, so that nothing of CUDA is needed to build or to
// start the engine. Both sides are built from one source tree; `cuda_interface_version` guards against a stale library.
#pragma once
#include <cstddef>

#include "native/core/tensor.h"
#include "native/device/device.h"

namespace tinyllama {

constexpr int cuda_interface_version = 2;

struct CudaOptions {
  int ordinal = 0;
  DataType compute_type = DataType::bf16;
  bool graphs = true;  // record repeated work as CUDA graphs
};

struct CudaGpu {
  char name[256];
  std::size_t memory;  // bytes
  int major, minor;    // compute capability
  int multiprocessors;
};

struct CudaLibrary {
  int interface_version;
  // Fills up to `capacity` entries and returns how many GPUs there are; -1 with the cause in `error`.
  int (*gpus)(CudaGpu* list, int capacity, char* error, std::size_t error_size);
  // Null with the cause in `error`. The caller deletes the device.
  Device* (*open)(const CudaOptions& options, char* error, std::size_t error_size);
};

}  // namespace tinyllama

extern "C" __attribute__((visibility("default"))) const tinyllama::CudaLibrary* tinyllama_cuda_library();
