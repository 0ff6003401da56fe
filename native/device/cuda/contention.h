// The contention emulator on a GPU: a kernel that stays.
#pragma once
#include <memory>

#include "native/device/contention.h"
#include "native/device/cuda/cuda_context.h"

namespace tinyllama::cuda {

// Begins on a stream of its own and returns when the multiprocessors are taken. Throws Error where they are not free within 5 s.
std::unique_ptr<Contention> start_contention(CudaContext& context, const ContentionOptions& options);

}  // namespace tinyllama::cuda
