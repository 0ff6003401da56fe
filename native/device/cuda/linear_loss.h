// The output projection and its loss in chunks of rows; the (N, V) logits never exist at once.
#pragma once
#include <cstddef>
#include <cstdint>

#include "native/core/tensor.h"
#include "native/device/cuda/cuda_context.h"
#include "native/device/cuda/matmul.h"

namespace tinyllama::cuda {

// Device::linear_cross_entropy. hidden, weight and dhidden are all f32 or all bf16; dweight is f32; `scale` lies on the device.
void linear_cross_entropy(CudaContext& context, MatmulEngine& engine, float* losses, const Tensor& dhidden, const Tensor& dweight,
                          const Tensor& hidden, const Tensor& weight, const std::int32_t* targets, const float* scale);
// Device::linear_log_probability. The logits are f32 in either type: bf16 ones lie on a grid of 1/8 from 16 up, and equal ones would decide
// what is greedy.
void linear_log_probability(CudaContext& context, MatmulEngine& engine, float* log_probabilities, std::uint8_t* greedy, const Tensor& hidden,
                            const Tensor& weight, const std::int32_t* targets);

}  // namespace tinyllama::cuda
