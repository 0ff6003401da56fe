// What training with bf16 weights and moments needs of a device beside the operations on fp32. The same bits on every machine, with any number of
// threads and any instruction set: no part of it depends on one.
#pragma once
#include <cstdint>

#include "native/device/cpu/cpu_context.h"
#include "native/device/device.h"

namespace tinyllama {

// Each is the operation of Device of the same name.
void round_weights(CpuContext& context, std::uint16_t* rounded, const float* weights, std::int64_t count);
void widen(CpuContext& context, float* out, const std::uint16_t* values, std::int64_t count);
void adamw_stochastic(CpuContext& context, std::uint16_t* weights, std::uint16_t* first_moment, std::uint16_t* second_moment, float* gradients,
                      std::int64_t count, std::int64_t first, std::uint64_t seed, const AdamWArguments& arguments);

}  // namespace tinyllama
