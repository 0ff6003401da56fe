// bf16 rounding, and AdamW on bf16 weights and moments: without bias, the same bits however it is cut and wherever it runs.
#include <array>
#include <bit>

#include "native/core/bfloat16.h"
#include "native/device/adamw_factors.h"
#include "native/device/stochastic_adamw.h"
#include "test/native/device_check.h"

using namespace tinyllama;
using namespace tinyllama::check;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr std::uint32_t randoms = 65536;

std::string shown(float value) { return std::to_string(value) + " (bits " + std::to_string(std::bit_cast<std::uint32_t>(value)) + ")"; }

// Zeros, subnormals of both types, ends of binades, large values and ordinary ones, of both signs.
std::vector<float> sample_values() {
  std::vector<float> result = {0.f,         1.f,           1.0000001f,     0.99999994f, 3.1415927f, 1e-8f,  1.99609375f, 1.998f, 0x1p-126f,
                               0x1p-127f,   0x1.8p-133f,   0x1p-133f,      0x1p-134f,   0x1p-149f,  3e-40f, 1e-42f,      1e38f,  0x1.fdp127f};
  for (const float value : values(40, 71)) result.push_back(value);
  for (const float value : values(40, 72)) result.push_back(value * 1e-39f);
  const std::size_t positive = result.size();
  for (std::size_t i = 0; i < positive; ++i) result.push_back(-result[i]);
  return result;
}

void check_widen_and_nearest() {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto value = static_cast<std::uint16_t>(bits);
    const float wide = widen(value);
    const std::uint16_t want = std::isnan(wide) ? bfloat16_nan : value;
    if (round_to_nearest(wide) != want || round_stochastically(wide, 0) != want || round_stochastically(wide, 65535) != want)
      expect(false, "what a bf16 holds stays: " + std::to_string(bits));
  }
  for (const float value : sample_values()) {
    const auto below = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);  // toward zero
    const double low = widen(below), high = widen(static_cast<std::uint16_t>(below + 1)), distance = std::abs(value - low) - std::abs(high - value);
    const bool up = distance > 0 || (distance == 0 && below % 2 == 1);
    expect(round_to_nearest(value) == below + (up ? 1 : 0), "round_to_nearest of " + shown(value));
  }
  expect(round_to_nearest(3.4e38f) == 0x7F80 && round_to_nearest(-infinity) == 0xFF80, "beyond the largest bf16 lies infinity");
}

// Over all random values the mean is the value itself, exactly: all of them are taken once.
void check_unbiased_rounding() {
  for (const float value : sample_values()) {
    const auto below = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
    long above = 0;
    bool neighbours = true;
    for (std::uint32_t random = 0; random < randoms; ++random) {
      const std::uint16_t rounded = round_stochastically(value, random);
      neighbours = neighbours && (rounded == below || rounded == below + 1);
      above += rounded != below;
    }
    const double low = widen(below), high = widen(static_cast<std::uint16_t>(below + 1));
    const double mean = low + (high - low) * static_cast<double>(above) / randoms;
    expect(neighbours && mean == static_cast<double>(value), "mean of the roundings of " + shown(value) + " is " + shown(static_cast<float>(mean)));
  }
  for (const std::uint32_t random : {0U, 1U, 32768U, 65535U}) {
    expect(round_stochastically(infinity, random) == 0x7F80 && round_stochastically(-infinity, random) == 0xFF80, "infinity stays");
    for (const std::uint32_t nan : {0x7FC00000U, 0x7FFFFFFFU, 0xFFFFFFFFU, 0x7F800001U, 0xFF80FFFFU})
      expect(round_stochastically(std::bit_cast<float>(nan), random) == bfloat16_nan, "a NaN becomes the NaN");
  }
}

using Halves = std::vector<std::uint16_t>;

struct State {
  Halves weights, first_moment, second_moment;
  std::vector<float> gradients;
  bool operator==(const State&) const = default;
};

State random_state(std::int64_t count, std::uint64_t seed) {
  State state;
  for (const float value : values(count, seed)) state.weights.push_back(round_to_nearest(value * 0.1f));
  for (const float value : values(count, seed + 1)) state.first_moment.push_back(round_to_nearest(value * 1e-3f));
  for (const float value : values(count, seed + 2)) state.second_moment.push_back(round_to_nearest(value * value * 1e-6f));
  for (const float value : values(count, seed + 3)) state.gradients.push_back(value * 1e-2f);
  return state;
}

constexpr AdamWArguments arguments{4e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 7, 0.5f};

AdamWArguments at_step(std::int64_t step) {
  AdamWArguments result = arguments;
  result.step = step;
  return result;
}

void update(Device& device, State& state, std::int64_t begin, std::int64_t end, std::int64_t first, std::uint64_t seed,
            const AdamWArguments& options = arguments) {
  device.adamw_stochastic(state.weights.data() + begin, state.first_moment.data() + begin, state.second_moment.data() + begin,
                          state.gradients.data() + begin, end - begin, first + begin, seed, options);
}

State updated(Device& device, State state, std::int64_t first, std::uint64_t seed, const AdamWArguments& options = arguments) {
  update(device, state, 0, static_cast<std::int64_t>(state.weights.size()), first, seed, options);
  return state;
}

// In double, before rounding: weight, first and second moment.
std::array<double, 3> exact_update(const State& state, std::size_t i, const AdamWArguments& options) {
  auto d = [](float value) { return static_cast<double>(value); };
  const double gradient = d(state.gradients[i]) * d(options.gradient_scale), step = static_cast<double>(options.step);
  const double first = d(options.beta1) * widen(state.first_moment[i]) + (1 - d(options.beta1)) * gradient;
  const double second = d(options.beta2) * widen(state.second_moment[i]) + (1 - d(options.beta2)) * gradient * gradient;
  const double root = std::sqrt(second / (1 - std::pow(d(options.beta2), step))) + d(options.epsilon);
  const double update = d(options.learning_rate) * first / (1 - std::pow(d(options.beta1), step)) / root;
  return {widen(state.weights[i]) * (1 - d(options.learning_rate) * d(options.weight_decay)) - update, first, second};
}

// The mean over seeds is the exact value, as far as the number of seeds tells: a rounding's deviation is at most half the neighbours' distance.
void check_unbiased_update() {
  constexpr std::int64_t count = 61;
  constexpr int seeds = 4000;
  const auto device = make_cpu_device(1);
  const State before = random_state(count, 81);
  std::vector<std::array<double, 3>> sums(static_cast<std::size_t>(count));
  for (int seed = 0; seed < seeds; ++seed) {
    const State after = updated(*device, before, 5, static_cast<std::uint64_t>(seed) * 0x9E3779B97F4A7C15U);
    for (std::size_t i = 0; i < sums.size(); ++i) {
      sums[i][0] += widen(after.weights[i]), sums[i][1] += widen(after.first_moment[i]), sums[i][2] += widen(after.second_moment[i]);
    }
  }
  double squares = 0;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    const auto want = exact_update(before, i, arguments);
    for (std::size_t k = 0; k < 3; ++k) {
      const auto below = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(want[k])) >> 16);
      const double low = widen(below), distance = widen(static_cast<std::uint16_t>(below + 1)) - low;
      const double share = std::clamp((want[k] - low) / distance, 0.0, 1.0), deviation = std::abs(distance) * std::sqrt(share * (1 - share) / seeds);
      // 1e-6: the fp32 arithmetic before the rounding.
      const double error = std::abs(sums[i][k] / seeds - want[k]), limit = 5 * deviation + 1e-6 * std::abs(want[k]);
      expect(error <= limit, "mean over seeds of value " + std::to_string(k) + " of element " + std::to_string(i) + ": off by " +
                                 std::to_string(error / limit) + " of the limit");
      squares += deviation > 0 ? std::pow(error / deviation, 2) : 1;
    }
  }
  expect(squares / (3 * count) < 1.4, "errors of the means are as large as sampling makes them: " + std::to_string(squares / (3 * count)));
}

void check_same_bits() {
  constexpr std::int64_t count = 50021, first = (std::int64_t{1} << 33) + 3;
  const State before = random_state(count, 91);
  const State want = updated(*make_cpu_device(1), before, first, 1234);
  expect(std::all_of(want.gradients.begin(), want.gradients.end(), [](float value) { return value == 0.f && !std::signbit(value); }),
         "gradients are zeroed");
  for (const char* limit : {"avx512", "avx2", "neon", "scalar"}) {
    setenv("TINYLLAMA_SIMD", limit, 1);
    for (const int threads : {1, 2, 3})
      expect(updated(*make_cpu_device(threads), before, first, 1234) == want, std::string(limit) + ", " + std::to_string(threads) + " threads: other bits");
  }
  unsetenv("TINYLLAMA_SIMD");
  const auto device = make_cpu_device(2);
  for (const std::vector<std::int64_t>& cuts : {std::vector<std::int64_t>{1}, {7, 8, 9}, {25000}, {13, 16384, 33333, 50020}}) {
    State cut = before;
    std::int64_t begin = 0;
    for (const std::int64_t end : cuts) update(*device, cut, begin, end, first, 1234), begin = end;
    update(*device, cut, begin, count, first, 1234);
    expect(cut == want, "cut in " + std::to_string(cuts.size() + 1) + " ranges: other bits");
  }
}

// Shares of equal random bits near one half would be chance; here values that differ count, so that near a half of the elements must.
void check_keys() {
  constexpr std::int64_t count = 20000;
  const auto device = make_cpu_device(1);
  State before{Halves(count, round_to_nearest(0.5f)), Halves(count, 0), Halves(count, 0), std::vector<float>(count, 3e-3f)};
  AdamWArguments late = at_step(1000000);  // bias corrections are 1, so that steps differ in their random bits alone
  const State base = updated(*device, before, 0, 1, late);
  auto differs = [&](const State& other, const char* what) {
    long changed = 0;
    for (std::size_t i = 0; i < count; ++i) changed += other.second_moment[i] != base.second_moment[i];
    expect(changed > count / 10, std::string(what) + " gives other random bits: " + std::to_string(changed) + " of " + std::to_string(count));
  };
  differs(updated(*device, before, 0, 2, late), "another seed");
  differs(updated(*device, before, 0, 1 + (std::uint64_t{1} << 32), late), "another upper half of the seed");
  differs(updated(*device, before, count, 1, late), "another place");
  differs(updated(*device, before, std::int64_t{8} << 32, 1, late), "another place, far away");
  late.step += 1;
  differs(updated(*device, before, 0, 1, late), "another step");
  late.step += std::int64_t{1} << 32;
  differs(updated(*device, before, 0, 1, late), "a step of more than 32 bits");
  // The three values' random bits, and those of neighbours, are independent: the product of the signs of two of them has mean zero.
  std::vector<std::array<double, 3>> bits(count);
  for (std::uint64_t block = 0; block < count / rounding_block; ++block) {
    for (std::size_t k = 0; k < 3; ++k) {
      const PhiloxCounter words = rounding_words(1, 5, block, static_cast<RoundedValue>(k + 1));
      for (int lane = 0; lane < rounding_block; ++lane)
        bits[block * rounding_block + static_cast<std::uint64_t>(lane)][k] = rounding_bits(words, lane) < randoms / 2 ? -1 : 1;
    }
  }
  auto expect_independent = [&](std::size_t distance, std::size_t a, std::size_t b) {
    double sum = 0;
    for (std::size_t i = 0; i + distance < count; ++i) sum += bits[i][a] * bits[i + distance][b];
    expect(std::abs(sum) < 5 * std::sqrt(static_cast<double>(count)),
           "random bits of values " + std::to_string(a) + " and " + std::to_string(b) + ", " + std::to_string(distance) + " elements apart, are independent");
  };
  for (const auto& [a, b] : {std::pair<std::size_t, std::size_t>{0, 1}, {0, 2}, {1, 2}}) expect_independent(0, a, b);
  for (std::size_t distance = 1; distance <= 9; ++distance) expect_independent(distance, 0, 0), expect_independent(distance, 0, 1);
}

void check_hostile_values() {
  const auto device = make_cpu_device(1);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  State state = random_state(6, 101);
  state.gradients = {nan, infinity, 0.f, 1e-30f, 1e30f, -nan};
  state.second_moment[2] = 0, state.first_moment[2] = 0, state.weights[2] = 0;
  const State after = updated(*device, state, 0, 3);
  for (const std::size_t i : {0UL, 5UL})
    expect(after.weights[i] == bfloat16_nan && after.first_moment[i] == bfloat16_nan && after.second_moment[i] == bfloat16_nan, "NaN gives NaN");
  expect(after.weights[1] == bfloat16_nan && after.first_moment[1] == 0x7F80 && after.second_moment[1] == 0x7F80, "an infinite gradient");
  expect(after.weights[2] == 0 && after.first_moment[2] == 0 && after.second_moment[2] == 0, "zeros stay zeros");
  for (const std::size_t i : {3UL, 4UL}) expect(std::isfinite(widen(after.first_moment[i])), "large and small gradients stay finite");
}

// Updates far below a weight's resolution add up, where rounding to the nearest would lose each of them.
void check_small_updates() {
  constexpr std::int64_t count = 64, steps = 1000;
  const auto device = make_cpu_device(1);
  State state{Halves(count, round_to_nearest(1.f)), Halves(count, 0), Halves(count, 0), std::vector<float>(count)};
  AdamWArguments options{1e-4f, 0.9f, 0.95f, 1e-8f, 0.f, 0, 1.f};
  for (options.step = 1; options.step <= steps; ++options.step) {
    std::fill(state.gradients.begin(), state.gradients.end(), -1.f);
    update(*device, state, 0, count, 0, 9, options);
  }
  double mean = 0;
  for (const std::uint16_t weight : state.weights) mean += widen(weight) / static_cast<double>(count);
  // 1000 updates of 1e-4; each element's walk deviates by sqrt(1000 * 1e-4 * 2^-7) = 0.028, their mean by an eighth of it.
  expect(std::abs(mean - 1.1) < 0.018, "1000 updates of 1e-4 lead from 1 to 1.1, got " + std::to_string(mean));
}

// Bits that must not change: a run that goes on after an update of the program gives what it would have given.
void check_golden() {
  State state = random_state(16, 111);
  state = updated(*make_cpu_device(1), state, 4, 3407);
  std::uint64_t digest = 0xcbf29ce484222325U;  // FNV-1a
  for (const Halves* halves : {&state.weights, &state.first_moment, &state.second_moment})
    for (const std::uint16_t half : *halves)
      for (const int shift : {0, 8}) digest = (digest ^ (half >> shift & 0xFF)) * 0x100000001b3U;
  expect(digest == 4047547775111026543U, "golden digest: " + std::to_string(digest));
}

void check_flat_conversions() {
  constexpr std::int64_t count = 40001;
  const std::vector<float> numbers = values(count, 121);
  for (const int threads : {1, 3}) {
    const auto device = make_cpu_device(threads);
    Halves rounded(count);
    std::vector<float> wide(count);
    device->round_weights(rounded.data(), numbers.data(), count);
    device->widen(wide.data(), rounded.data(), count);
    bool right = true;
    for (std::size_t i = 0; i < count; ++i) right = right && rounded[i] == round_to_nearest(numbers[i]) && wide[i] == widen(rounded[i]);
    expect(right, "round_weights and widen with " + std::to_string(threads) + " threads");
  }
}

}  // namespace

int main() {
  check_widen_and_nearest();
  check_unbiased_rounding();
  check_unbiased_update();
  check_same_bits();
  check_keys();
  check_hostile_values();
  check_small_updates();
  check_golden();
  check_flat_conversions();
  return report("stochastic_adamw_test");
}
