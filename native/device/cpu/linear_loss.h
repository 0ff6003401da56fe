// The output projection and its loss in one: the logits of all rows never exist at once.
#pragma once
#include <cstdint>

#include "native/core/tensor.h"
#include "native/device/cpu/cpu_context.h"

namespace tinyllama {

// What the products take of a call, what they do to their operands included.
struct LinearLossSeconds {
  double forward = 0, input_gradient = 0, weight_gradient = 0;
};

// Device::linear_cross_entropy. Adds to `seconds`, when given.
void linear_cross_entropy(CpuContext& context, float* losses, const Tensor& dhidden, const Tensor& dweight, const Tensor& hidden,
                          const Tensor& weight, const std::int32_t* targets, float scale,
                          LinearLossSeconds* seconds = nullptr);

// Device::linear_log_probability.
void linear_log_probability(CpuContext& context, float* log_probabilities, std::uint8_t* greedy, const Tensor& hidden, const Tensor& weight,
                            const std::int32_t* targets);

}  // namespace tinyllama
