// AdamW on bf16 weights and moments: the GPU's bits against those of the arithmetic that every device shares, run here on the host element by element.
// cuda_stochastic_adamw_test [seed]. Ranges that begin and end inside rounding blocks, addresses that fit vectors and that do not, hostile values.
#include <cstdlib>
#include <random>

#include "native/core/bfloat16.h"
#include "native/device/cuda/pointwise.h"
#include "native/device/cuda/stochastic_adamw_kernels.h"
#include "test/native/cuda/gpu_check.h"

namespace tinyllama {
namespace {

using check::DeviceValues;
using check::expect;
using Halves = std::vector<std::uint16_t>;

struct State {
  Halves weights, first_moment, second_moment;
  std::vector<float> gradients;
  std::size_t size() const { return weights.size(); }
};

State random_state(std::int64_t count, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  State state;
  for (std::int64_t i = 0; i < count; ++i) {
    state.weights.push_back(round_to_nearest(normal(random) * 0.02f));
    state.first_moment.push_back(round_to_nearest(normal(random) * 1e-3f));
    const float root = normal(random) * 1e-3f;
    state.second_moment.push_back(round_to_nearest(root * root));
    state.gradients.push_back(normal(random) * 1e-2f);
  }
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const float hostile[] = {nan, -nan, infinity, -infinity, 0.f, -0.f, 1e-30f, 1e30f, 1e-42f, 3e38f};
  for (std::size_t i = 0, kind = 0; i < state.size(); i += 37, ++kind) {
    state.gradients[i] = hostile[kind % 10];
    if (kind % 3 == 0) state.first_moment[i] = state.second_moment[i] = 0;
    if (kind % 7 == 0) state.weights[i] = static_cast<std::uint16_t>(random());  // any bf16, NaN and subnormals too
    if (kind % 11 == 0) state.second_moment[i] = static_cast<std::uint16_t>(random() & 0x7FFF);
  }
  return state;
}

void update_on_host(State& state, std::int64_t first, std::uint64_t seed, const AdamWArguments& arguments) {
  const AdamWFactors factors = adamw_factors(arguments);
  const auto step = static_cast<std::uint64_t>(arguments.step);
  for (std::size_t i = 0; i < state.size(); ++i) {
    const auto index = static_cast<std::uint64_t>(first) + i;
    auto bits = [&](RoundedValue value) { return rounding_bits(rounding_words(seed, step, index / rounding_block, value), static_cast<int>(index % rounding_block)); };
    const AdamWValues after =
        adamw_values({widen(state.weights[i]), widen(state.first_moment[i]), widen(state.second_moment[i])}, state.gradients[i], factors);
    state.weights[i] = round_stochastically(after.weight, bits(RoundedValue::weight));
    state.first_moment[i] = round_stochastically(after.first_moment, bits(RoundedValue::first_moment));
    state.second_moment[i] = round_stochastically(after.second_moment, bits(RoundedValue::second_moment));
    state.gradients[i] = 0.f;
  }
}

template <class T>
void put(const DeviceValues& memory, const std::vector<T>& values) {
  CHECK_CUDA(cudaMemcpy(memory.data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
}

template <class T>
void expect_bits(const DeviceValues& memory, const std::vector<T>& want, const std::string& what) {
  const std::vector<char> got = memory.raw();
  std::size_t at = 0;
  while (at < want.size() && std::memcmp(got.data() + at * sizeof(T), &want[at], sizeof(T)) == 0) ++at;
  expect(at == want.size(), what + ": other bits than the host's, first at " + std::to_string(at));
  expect(memory.margins_kept(), what + ": wrote outside");
}

class OnGpu {
 public:
  OnGpu(std::int64_t count, std::int64_t shift)
      : weights_(count, DataType::bf16, shift), first_(count, DataType::bf16, shift), second_(count, DataType::bf16, shift),
        gradients_(count, DataType::f32, shift) {}
  void set(const State& state) {
    for (DeviceValues* values : {&weights_, &first_, &second_, &gradients_}) values->poison();
    put(weights_, state.weights), put(first_, state.first_moment), put(second_, state.second_moment), put(gradients_, state.gradients);
    CHECK_CUDA(cudaDeviceSynchronize());
  }
  void expect_state(const State& want, const std::string& name) const {
    expect_bits(weights_, want.weights, name + " weights");
    expect_bits(first_, want.first_moment, name + " first moment");
    expect_bits(second_, want.second_moment, name + " second moment");
    expect_bits(gradients_, want.gradients, name + " gradients");
  }
  static std::uint16_t* halves(const DeviceValues& values) { return static_cast<std::uint16_t*>(values.data()); }
  void update(CudaContext& context, std::int64_t begin, std::int64_t end, std::int64_t first, std::uint64_t seed, const AdamWArguments& arguments) const {
    cuda::adamw_stochastic(context, halves(weights_) + begin, halves(first_) + begin, halves(second_) + begin, gradients_.f32() + begin, end - begin,
                           first + begin, seed, arguments);
    CHECK_CUDA(cudaStreamSynchronize(context.stream()));
  }
  // The kernel's variants, whole addresses assumed.
  template <cuda::GradientAccess access>
  void update_by(CudaContext& context, std::int64_t count, std::uint64_t seed, const AdamWArguments& arguments) const {
    const cuda::StochasticAdamWArrays arrays{halves(weights_), halves(first_), halves(second_), gradients_.f32(), count, 0, seed,
                                             static_cast<std::uint64_t>(arguments.step), true};
    const std::int64_t blocks = (count + rounding_block - 1) / rounding_block;
    cuda::adamw_stochastic_update<access><<<cuda::blocks_for(blocks, cuda::stochastic_threads), cuda::stochastic_threads, 0, context.stream()>>>(
        arrays, adamw_factors(arguments));
    CHECK_LAUNCH("adamw_stochastic_update");
    CHECK_CUDA(cudaStreamSynchronize(context.stream()));
  }

 private:
  DeviceValues weights_, first_, second_, gradients_;
};

constexpr AdamWArguments arguments{4e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 7, 0.37f};

void test_range(CudaContext& context, std::mt19937_64& random, std::int64_t count, std::int64_t shift, std::int64_t first, std::int64_t step) {
  const std::string name = "adamw_stochastic of " + std::to_string(count) + " from " + std::to_string(first) + ", shift " + std::to_string(shift) +
                           ", step " + std::to_string(step);
  const std::uint64_t seed = random();
  AdamWArguments options = arguments;
  options.step = step;
  const State before = random_state(count, random);
  State want = before;
  update_on_host(want, first, seed, options);
  OnGpu state(count, shift);
  state.set(before);
  state.update(context, 0, count, first, seed, options);
  state.expect_state(want, name);
  state.set(before);
  state.update(context, 0, count, first, seed, options);
  state.expect_state(want, name + ", again");
  if (count < 3) return;
  state.set(before);
  for (const auto& [begin, end] : {std::pair{count / 3, count}, std::pair{std::int64_t{0}, count / 3}}) state.update(context, begin, end, first, seed, options);
  state.expect_state(want, name + ", in two parts");
}

void test_variants(CudaContext& context, std::mt19937_64& random, std::int64_t count) {
  using enum cuda::GradientAccess;
  const State before = random_state(count, random);
  State want = before;
  update_on_host(want, 0, 5, arguments);
  OnGpu state(count, 0);
  auto expect_variant = [&](const char* name, auto&& update) {
    state.set(before);
    update();
    state.expect_state(want, std::string(name) + " of " + std::to_string(count));
  };
  expect_variant("own", [&] { state.update_by<own>(context, count, 5, arguments); });
  expect_variant("zeros", [&] { state.update_by<zeros>(context, count, 5, arguments); });
  expect_variant("shuffled", [&] { state.update_by<shuffled>(context, count, 5, arguments); });
}

void test_widen(CudaContext& context) {
  Halves all(65536 + 3);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  const auto count = static_cast<std::int64_t>(all.size());
  DeviceValues halves(count, DataType::bf16), floats(count, DataType::f32);
  put(halves, all);
  CHECK_CUDA(cudaDeviceSynchronize());
  cuda::widen(context, floats.f32(), static_cast<const std::uint16_t*>(halves.data()), count);
  CHECK_CUDA(cudaStreamSynchronize(context.stream()));
  std::vector<std::uint32_t> want;
  for (const std::uint16_t half : all) want.push_back(static_cast<std::uint32_t>(half) << 16);
  expect_bits(floats, want, "widen");
}

void run(std::uint64_t seed) {
  CudaContext context{0};
  std::mt19937_64 random(seed);
  std::printf("%s, seed %llu\n", context.properties().name, static_cast<unsigned long long>(seed));
  for (const std::int64_t first : {std::int64_t{0}, std::int64_t{3}, std::int64_t{8}, (std::int64_t{1} << 33) + 5, std::int64_t{256}})
    for (const std::int64_t count : {1, 2, 7, 8, 9, 255, 256, 257, 2048, 4099, 70001})
      for (const std::int64_t shift : {0, 1, 3, 5}) test_range(context, random, count, shift, first, 7);
  for (const std::int64_t step : {std::int64_t{1}, std::int64_t{100000}, (std::int64_t{3} << 32) + 1}) test_range(context, random, 5000, 0, 0, step);
  test_range(context, random, 3000017, 0, 0, 1000);
  for (const std::int64_t count : {8, 256, 5000, 100003}) test_variants(context, random, count);
  test_widen(context);
  CHECK_CUDA(cudaDeviceSynchronize());
}

}  // namespace
}  // namespace tinyllama

int main(int count, char** arguments) {
  try {
    tinyllama::run(count > 1 ? std::strtoull(arguments[1], nullptr, 10) : std::random_device{}());
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
  return tinyllama::check::report("cuda stochastic adamw");
}
