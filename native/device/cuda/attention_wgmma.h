// The attention kernels for GPUs of compute capability 9.0: bf16, head sizes 64 and 128. Arguments as in attention.h; the matrices must be as
// attention_mma_supports asks.
#pragma once
#include <cstdint>

#include "native/core/tensor.h"
#include "native/device/cuda/cuda_context.h"
#include "native/device/device.h"

namespace tinyllama::cuda {

// Whether this GPU and this build have them.
bool attention_wgmma_available(const CudaContext& context);
void attention_wgmma_forward(CudaContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                             const std::int32_t* first_keys);
// Head size 64 only so far.
void attention_wgmma_backward(CudaContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out,
                              const float* lse, const AttentionShape& shape, const std::int32_t* first_keys);

}  // namespace tinyllama::cuda
