#include "native/device/cpu/stochastic_adamw.h"

#include <algorithm>

#include "native/core/bfloat16.h"
#include "native/device/cpu/gemm.h"
#include "native/device/stochastic_adamw.h"

namespace tinyllama {
namespace {

// Elements of one work item: a tenth of a millisecond of the update.
constexpr std::int64_t grain = 16384;

template <class Body>
void for_blocks(CpuContext& context, std::int64_t count, Body&& body) {
  context.pool.parallel_for(divide_up(count, grain),
                            [&](std::int64_t item, int) { body(item * grain, std::min(count, (item + 1) * grain)); });
}

struct State {
  std::uint16_t *weights, *first_moment, *second_moment;
  float* gradients;
};

void update(const State& state, std::int64_t at, const AdamWFactors& factors, const PhiloxCounter (&words)[3], int lane) {
  const AdamWValues after = adamw_values({widen(state.weights[at]), widen(state.first_moment[at]), widen(state.second_moment[at])},
                                         state.gradients[at], factors);
  state.weights[at] = round_stochastically(after.weight, rounding_bits(words[0], lane));
  state.first_moment[at] = round_stochastically(after.first_moment, rounding_bits(words[1], lane));
  state.second_moment[at] = round_stochastically(after.second_moment, rounding_bits(words[2], lane));
  state.gradients[at] = 0.f;
}

}  // namespace

void round_weights(CpuContext& context, std::uint16_t* rounded, const float* weights, std::int64_t count) {
  for_blocks(context, count, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) rounded[i] = round_to_nearest(weights[i]);
  });
}

void widen(CpuContext& context, float* out, const std::uint16_t* values, std::int64_t count) {
  for_blocks(context, count, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) out[i] = widen(values[i]);
  });
}

void adamw_stochastic(CpuContext& context, std::uint16_t* weights, std::uint16_t* first_moment, std::uint16_t* second_moment, float* gradients,
                      std::int64_t count, std::int64_t first, std::uint64_t seed, const AdamWArguments& arguments) {
  const AdamWFactors factors = adamw_factors(arguments);
  const auto step = static_cast<std::uint64_t>(arguments.step);
  const State state{weights, first_moment, second_moment, gradients};
  for_blocks(context, count, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t index = first + begin; index < first + end;) {
      const auto block = static_cast<std::uint64_t>(index / rounding_block);
      const PhiloxCounter words[3] = {rounding_words(seed, step, block, RoundedValue::weight),
                                      rounding_words(seed, step, block, RoundedValue::first_moment),
                                      rounding_words(seed, step, block, RoundedValue::second_moment)};
      for (auto lane = static_cast<int>(index % rounding_block); lane < rounding_block && index < first + end; ++lane, ++index) {
        update(state, index - first, factors, words, lane);
      }
    }
  });
}

}  // namespace tinyllama
