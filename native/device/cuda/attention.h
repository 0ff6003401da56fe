// Causal grouped-query attention on packed rows (FlashAttention-2, Dao 2023): Device::attention_forward and attention_backward.
#pragma once
#include <cstdint>

#include "native/core/tensor.h"
#include "native/device/cuda/cuda_context.h"
#include "native/device/device.h"

namespace tinyllama::cuda {

// qkv (N, (H + 2G)·S), out (N, H·S), all f32 or all bf16; lse (B, H, T) f32. first_keys (N), or null: position t of a sequence attends keys
// first_keys[t] to t (positions within the sequence), for packed documents.
void attention_forward(CudaContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                       const std::int32_t* first_keys);
// dqkv is overwritten. Deterministic: equal inputs give equal bits.
void attention_backward(CudaContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out, const float* lse,
                        const AttentionShape& shape, const std::int32_t* first_keys);

}  // namespace tinyllama::cuda
