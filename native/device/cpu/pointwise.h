// The operations bound by memory: norms, rotary, activations, embeddings, and the optimizer's passes over flat arrays.
#pragma once
#include <cstdint>

#include "native/core/tensor.h"
#include "native/device/cpu/cpu_context.h"
#include "native/device/device.h"

namespace tinyllama {

// Each is the operation of Device of the same name.
void embedding_forward(CpuContext& context, const Tensor& out, const Tensor& table, const std::int32_t* ids);
void embedding_backward(CpuContext& context, const Tensor& dtable, const Tensor& dout, const std::int32_t* ids);
void rms_norm_forward(CpuContext& context, const Tensor& out, float* rstd, const Tensor& sum, const Tensor& x, const Tensor& delta,
                      const float* gain, float eps);
void rms_norm_again(CpuContext& context, const Tensor& out, const Tensor& x, const float* gain, const float* rstd);
void rms_norm_backward(CpuContext& context, const Tensor& dx, float* dgain, const Tensor& normed, const Tensor& dout, const Tensor& x,
                       const float* gain, const float* rstd);
void rotary(CpuContext& context, const Tensor& qkv, const float* cosine, const float* sine, const AttentionShape& shape, bool inverse);
void swiglu_forward(CpuContext& context, const Tensor& act, const Tensor& gate_up);
void swiglu_backward(CpuContext& context, const Tensor& dgate_up, const Tensor& act, const Tensor& dact, const Tensor& gate_up);
void fill_normal(CpuContext& context, float* out, std::int64_t count, std::uint64_t seed, std::int64_t first, float deviation);
void add(CpuContext& context, float* a, const float* b, std::int64_t count);
void squared_norm(CpuContext& context, double* sums, const float* values, std::int64_t count);
void adamw(CpuContext& context, float* weights, float* first_moment, float* second_moment, float* gradients, std::int64_t count,
           const AdamWArguments& arguments);

}  // namespace tinyllama
