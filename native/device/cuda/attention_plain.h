// Attention without tensor cores: f32, or bf16 with fp32 arithmetic, any head size up to 256. For the engine's fp32 mode and for small models.
#pragma once
#include <cstdint>

#include "native/core/tensor.h"
#include "native/device/cuda/cuda_context.h"
#include "native/device/device.h"

namespace tinyllama::cuda {

void attention_plain_forward(CudaContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                             const std::int32_t* first_keys);
void attention_plain_backward(CudaContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out,
                              const float* lse, const AttentionShape& shape, const std::int32_t* first_keys);

}  // namespace tinyllama::cuda
