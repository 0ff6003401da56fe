// What the CUDA library offers to the engine, which loads it at run time: plain C entry points, so that nothing of CUDA is needed to build or to
// start the engine. Both sides are built from one source tree; `cuda_interface_version` guards against a stale library.
#pragma once
#include <cstddef>

#include "native/core/tensor.h"
#include "native/device/contention.h"
#include "native/device/device.h"
#include "native/distributed/communicator.h"

namespace tinyllama {

constexpr int cuda_interface_version = 6;

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

// What rank 0 makes and hands to the others, so that NCCL joins them.
struct NcclId {
  char bytes[128];
};

struct NcclOptions {
  int rank = 0, size = 1;
  NcclId id{};
  double timeout = 300;  // seconds for the ranks to join
};

struct CudaLibrary {
  int interface_version;
  // Fills up to `capacity` entries and returns how many GPUs there are; -1 with the cause in `error`.
  int (*gpus)(CudaGpu* list, int capacity, char* error, std::size_t error_size);
  // Null with the cause in `error`. The caller deletes the device.
  Device* (*open)(const CudaOptions& options, char* error, std::size_t error_size);
  // Makes an id; false with the cause in `error`.
  bool (*make_nccl_id)(NcclId& id, char* error, std::size_t error_size);
  // Joins ranks on the device, which `open` gave and which outlives the communicator. Null with the cause in `error`; the caller deletes it.
  Communicator* (*open_nccl)(Device& device, const NcclOptions& options, char* error, std::size_t error_size);
  // Takes a part of the device away until it is deleted. Null with the cause in `error`.
  Contention* (*start_contention)(Device& device, const ContentionOptions& options, char* error, std::size_t error_size);
};

}  // namespace tinyllama

extern "C" __attribute__((visibility("default"))) const tinyllama::CudaLibrary* tinyllama_cuda_library();
