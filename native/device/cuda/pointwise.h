// The operations bound by memory. Each is the operation of Device of the same name; Tensors are all f32 or all bf16 (arithmetic is in fp32
// either way), gains, rstd, losses and everything of the optimizer are f32.
#pragma once
#include <cstdint>

#include "native/core/tensor.h"
#include "native/device/cuda/cuda_context.h"
#include "native/device/device.h"

namespace tinyllama::cuda {

void embedding_forward(CudaContext& context, const Tensor& out, const Tensor& table, const std::int32_t* ids);
void embedding_backward(CudaContext& context, const Tensor& dtable, const Tensor& dout, const std::int32_t* ids);
void rms_norm_forward(CudaContext& context, const Tensor& out, float* rstd, const Tensor& sum, const Tensor& x, const Tensor& delta,
                      const float* gain, float eps);
void rms_norm_again(CudaContext& context, const Tensor& out, const Tensor& x, const float* gain, const float* rstd);
void rms_norm_backward(CudaContext& context, const Tensor& dx, float* dgain, const Tensor& normed, const Tensor& dout, const Tensor& x,
                       const float* gain, const float* rstd);
void rotary(CudaContext& context, const Tensor& qkv, const float* cosine, const float* sine, const AttentionShape& shape, bool inverse);
void swiglu_forward(CudaContext& context, const Tensor& act, const Tensor& gate_up);
void swiglu_backward(CudaContext& context, const Tensor& dgate_up, const Tensor& act, const Tensor& dact, const Tensor& gate_up);
void add(CudaContext& context, float* a, const float* b, std::int64_t count);
void fill_normal(CudaContext& context, float* out, std::int64_t count, std::uint64_t seed, std::int64_t first, float deviation);
// Waits for the result.
void squared_norm(CudaContext& context, double* sums, const float* values, std::int64_t count);
void round_weights(CudaContext& context, void* rounded, const float* weights, std::int64_t count);
void adamw(CudaContext& context, float* weights, void* rounded, float* first_moment, float* second_moment, float* gradients,
           std::int64_t count, const AdamWArguments& arguments);
void widen(CudaContext& context, float* out, const std::uint16_t* values, std::int64_t count);
void adamw_stochastic(CudaContext& context, std::uint16_t* weights, std::uint16_t* first_moment, std::uint16_t* second_moment, float* gradients,
                      std::int64_t count, std::int64_t first, std::uint64_t seed, const AdamWArguments& arguments);

}  // namespace tinyllama::cuda
