// The tensor core kernels of attention: bf16, head sizes 64 and 128, from sm_80 on. Arguments as in attention.h.
#pragma once
#include <cstdint>

#include "native/core/tensor.h"
#include "native/device/cuda/cuda_context.h"
#include "native/device/device.h"

namespace tinyllama::cuda {

bool attention_mma_supports(const Tensor& qkv, const Tensor& out, const AttentionShape& shape);
void attention_mma_forward(CudaContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                           const std::int32_t* first_keys);
void attention_mma_backward(CudaContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out,
                            const float* lse, const AttentionShape& shape, const std::int32_t* first_keys);
// Of head size 128, in tiles for GPUs whose blocks have 99 KiB of shared memory (sm_86, sm_89); attention_mma_backward takes them there.
void attention_mma_backward_128_small(CudaContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out,
                                      const float* lse, const AttentionShape& shape, const std::int32_t* first_keys);

}  // namespace tinyllama::cuda
