// Collectives between GPUs over NCCL, one process a GPU.
#pragma once
#include <memory>

#include "native/device/cuda/cuda_context.h"
#include "native/device/cuda/library.h"
#include "native/distributed/communicator.h"

namespace tinyllama::cuda {

// Joins the ranks that have the same id; blocks until all have come. The context outlives it. Throws Error where they do not join within the timeout.
std::unique_ptr<Communicator> make_nccl_communicator(CudaContext& context, const NcclOptions& options);

}  // namespace tinyllama::cuda
