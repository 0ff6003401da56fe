// Causal grouped-query attention in tiles: the (T, T) scores never exist at once (FlashAttention, Dao et al. 2022).
#pragma once
#include "native/core/tensor.h"
#include "native/device/cpu/cpu_context.h"
#include "native/device/device.h"

namespace tinyllama {

// Device::attention_forward.
void attention_forward(CpuContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                       const std::int32_t* first_keys);

// Device::attention_backward. When several query heads share a key/value head, each computes its own share of dk and dv
// (2 · B·H·T·S elements of working memory); the shares are added in the order of the heads.
void attention_backward(CpuContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out, const float* lse,
                        const AttentionShape& shape, const std::int32_t* first_keys);

}  // namespace tinyllama
