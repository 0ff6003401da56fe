// Linear cross entropy and log-probabilities on a GPU against fp64 on the CPU. In bf16 the error may be twice that of the same formula in fp64
// with logits and their gradient rounded to bf16 where the GPU must round them (FlashAttention's rule); in f32 it is bounded outright.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "native/device/cuda/linear_loss.h"
#include "native/device/cuda/scratch_sizes.h"
#include "native/device/cuda/own_matmul.h"
#include "test/native/cuda/matmul_values.h"

using namespace tinyllama;
using namespace tinyllama::check;

namespace {

struct Case {
  const char* name;
  std::int64_t rows, width, vocabulary;
  float spread = 1;        // of the weights: large ones make one class certain
  int ignored = 10;        // percent of the targets
};

struct Inputs {
  std::vector<float> hidden, weight, old_dweight;
  std::vector<std::int32_t> targets;
  float scale;
  Inputs(const Case& c, DataType type) : hidden(values(c.rows * c.width, 31)), weight(values(c.vocabulary * c.width, 32)), old_dweight(values(c.vocabulary * c.width, 33)) {
    for (float& value : weight) value *= c.spread;
    for (float& value : old_dweight) value *= 1e-3f;
    // Equal rows of weights give equal logits: the first of them is the arg max where they are the largest.
    if (c.vocabulary > 20)
      for (std::int64_t copy : {c.vocabulary / 2, c.vocabulary - 1}) std::copy_n(weight.begin() + 3 * c.width, c.width, weight.begin() + copy * c.width);
    if (type == DataType::bf16) round_to_bf16(hidden), round_to_bf16(weight);
    std::int64_t valid = 0;
    for (std::int64_t n = 0; n < c.rows; ++n) {
      const auto bits = mix(static_cast<std::uint64_t>(n) + 99);
      const auto vocabulary = static_cast<std::uint64_t>(c.vocabulary);
      const std::uint64_t special[] = {0, vocabulary - 1, vocabulary / 2, std::min<std::uint64_t>(3, vocabulary - 1)};
      const bool ignore = static_cast<int>(bits % 100) < c.ignored;
      targets.push_back(ignore ? -1 : static_cast<std::int32_t>(n % 3 == 0 ? special[bits >> 8 & 3] : (bits >> 8) % vocabulary));
      valid += !ignore;
    }
    scale = 1.f / static_cast<float>(std::max<std::int64_t>(valid, 1));
  }
};

struct Results {
  std::vector<double> losses, log_probabilities, dhidden, dweight;
  std::vector<double> gaps;           // between the target's logit and the largest other, equal rows of weights apart
  std::vector<std::uint8_t> greedy;
};

// rounded: logits and their gradient go through bf16.
Results reference(const Case& c, const Inputs& in, bool rounded) {
  const auto width = static_cast<std::size_t>(c.width), vocabulary = static_cast<std::size_t>(c.vocabulary);
  Results out;
  out.dhidden.assign(in.hidden.size(), 0);
  out.dweight.assign(in.old_dweight.begin(), in.old_dweight.end());
  std::vector<double> logits(vocabulary);
  const auto round = [&](double value) { return rounded ? static_cast<double>(from_bf16(to_bf16(static_cast<float>(value)))) : value; };
  for (std::size_t n = 0; n < static_cast<std::size_t>(c.rows); ++n) {
    const std::int32_t target = in.targets[n];
    out.losses.push_back(0), out.log_probabilities.push_back(0), out.greedy.push_back(0), out.gaps.push_back(0);
    if (target < 0) continue;
    double top = -1e300;
    for (std::size_t v = 0; v < vocabulary; ++v) {
      double sum = 0;
      for (std::size_t d = 0; d < width; ++d) sum += static_cast<double>(in.hidden[n * width + d]) * static_cast<double>(in.weight[v * width + d]);
      logits[v] = round(sum);
      top = std::max(top, logits[v]);
    }
    double total = 0;
    for (const double logit : logits) total += std::exp(logit - top);
    const double own = logits[static_cast<std::size_t>(target)], log_sum = top + std::log(total);
    out.losses.back() = log_sum - own;
    out.log_probabilities.back() = own - log_sum;
    bool greedy = true;
    double gap = 1e300;
    for (std::size_t v = 0; v < vocabulary; ++v) {
      if (v == static_cast<std::size_t>(target)) continue;
      greedy = greedy && (v < static_cast<std::size_t>(target) ? logits[v] < own : logits[v] <= own);
      if (!std::equal(in.weight.begin() + static_cast<std::ptrdiff_t>(v * width), in.weight.begin() + static_cast<std::ptrdiff_t>((v + 1) * width),
                      in.weight.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(target) * width)))
        gap = std::min(gap, std::abs(logits[v] - own));
    }
    out.greedy.back() = greedy;
    out.gaps.back() = gap;
    for (std::size_t v = 0; v < vocabulary; ++v) {
      const double gradient = round((std::exp(logits[v] - log_sum) - (v == static_cast<std::size_t>(target))) * static_cast<double>(in.scale));
      for (std::size_t d = 0; d < width; ++d) {
        out.dhidden[n * width + d] += gradient * static_cast<double>(in.weight[v * width + d]);
        out.dweight[v * width + d] += gradient * static_cast<double>(in.hidden[n * width + d]);
      }
    }
  }
  if (rounded)
    for (double& value : out.dhidden) value = round(value);
  return out;
}

// Of the whole, relative; `unit`: what counts as a size of one where nothing but zeros is wanted.
template <class Value>
double distance(const std::vector<Value>& got, const std::vector<double>& want, double unit) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += std::pow(static_cast<double>(got[i]) - want[i], 2);
    size += want[i] * want[i];
  }
  return std::sqrt(error / std::max(size, unit * unit));
}

template <class Value>
double farthest(const std::vector<Value>& got, const std::vector<double>& want) {
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - want[i]);
    if (!(error <= worst)) worst = std::isfinite(error) ? error : 1e300;
  }
  return worst;
}

std::vector<float> elements(const DeviceMatrix& matrix, std::int64_t rows, std::int64_t columns) {
  const auto bytes = matrix.read();
  std::vector<float> result;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < columns; ++c) result.push_back(matrix.get(bytes, r, c));
  return result;
}

std::vector<float> nans(std::int64_t count) { return std::vector<float>(static_cast<std::size_t>(count), std::nanf("")); }

void run_case(CudaContext& context, cuda::MatmulEngine& engine, const std::string& engine_name, const Case& c, DataType type) {
  const Inputs in(c, type);
  const std::string name = engine_name + (type == DataType::f32 ? " f32 " : " bf16 ") + c.name;
  const Results exact = reference(c, in, false), rounded = type == DataType::bf16 ? reference(c, in, true) : exact;
  DeviceMatrix hidden(type, c.rows, c.width, c.width + 8, 0), weight(type, c.vocabulary, c.width, c.width, 0);
  DeviceMatrix dhidden(type, c.rows, c.width, c.width + 8, 0), dweight(DataType::f32, c.vocabulary, c.width, c.width, 0);
  hidden.fill(&in.hidden);
  weight.fill(&in.weight);
  const DeviceMemory targets(in.targets), scale(std::vector<float>{in.scale});
  struct Run {
    std::vector<float> losses, dhidden, dweight, log_probabilities;
    std::vector<std::uint8_t> greedy;
  };
  const auto run = [&] {
    dhidden.fill(nullptr);
    dweight.fill(&in.old_dweight);
    const DeviceMemory losses(nans(c.rows)), log_probabilities(nans(c.rows)), greedy(std::vector<std::uint8_t>(static_cast<std::size_t>(c.rows), 0xee));
    // What an earlier operation may have left there.
    CHECK_CUDA(cudaMemset(context.scratch(cuda::linear_loss_scratch(c.rows, c.vocabulary, type)), 0xff, cuda::linear_loss_scratch(c.rows, c.vocabulary, type)));
    CHECK_CUDA(cudaDeviceSynchronize());
    cuda::linear_cross_entropy(context, engine, losses.as<float>(), dhidden.tensor(), dweight.tensor(), hidden.tensor(), weight.tensor(),
                               targets.as<std::int32_t>(), scale.as<float>());
    cuda::linear_log_probability(context, engine, log_probabilities.as<float>(), greedy.as<std::uint8_t>(), hidden.tensor(), weight.tensor(),
                                 targets.as<std::int32_t>());
    return Run{losses.read<float>(), elements(dhidden, c.rows, c.width), elements(dweight, c.vocabulary, c.width), log_probabilities.read<float>(),
               greedy.read<std::uint8_t>()};
  };
  const Run first = run(), second = run();
  const auto same = [](const auto& a, const auto& b) { return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0; };
  expect(same(first.losses, second.losses) && same(first.dhidden, second.dhidden) && same(first.dweight, second.dweight) &&
             same(first.log_probabilities, second.log_probabilities) && same(first.greedy, second.greedy),
         name + ": a second run gives other bits");

  double largest = 1;
  for (const double loss : exact.losses) largest = std::max(largest, std::abs(loss));
  const bool bf16 = type == DataType::bf16;
  const auto limit = [&](double own, double floor) { return bf16 ? 2 * own + floor : floor; };
  const double unit = static_cast<double>(in.scale);
  const double loss_error = farthest(first.losses, exact.losses), loss_limit = limit(farthest(rounded.losses, exact.losses), 2e-5 * largest);
  const double dhidden_error = distance(first.dhidden, exact.dhidden, unit), dhidden_limit = limit(distance(rounded.dhidden, exact.dhidden, unit), 2e-5);
  const double dweight_error = distance(first.dweight, exact.dweight, unit), dweight_limit = limit(distance(rounded.dweight, exact.dweight, unit), 2e-5);
  const double probability_error = farthest(first.log_probabilities, exact.log_probabilities), probability_limit = 2e-5 * largest;
  const auto within = [&](double error, double most, const char* what) {
    expect(error <= most, name + ": " + what + " is off by " + std::to_string(error * 1e6) + "e-6, limit " + std::to_string(most * 1e6) + "e-6");
  };
  within(loss_error, loss_limit, "loss");
  within(dhidden_error, dhidden_limit, "dhidden");
  within(dweight_error, dweight_limit, "dweight");
  within(probability_error, probability_limit, "log-probability");
  std::int64_t greedy_wrong = 0, greedy_count = 0, ignored_wrong = 0;
  for (std::size_t n = 0; n < exact.greedy.size(); ++n) {
    if (in.targets[n] < 0) ignored_wrong += first.losses[n] != 0 || first.log_probabilities[n] != 0 || first.greedy[n] != 0;
    greedy_count += exact.greedy[n];
    greedy_wrong += first.greedy[n] != exact.greedy[n] && exact.gaps[n] > 1e-4 * largest;
  }
  expect(greedy_wrong == 0, name + ": greedy is wrong in " + std::to_string(greedy_wrong) + " rows");
  expect(ignored_wrong == 0, name + ": rows without target are not zero: " + std::to_string(ignored_wrong));
  std::printf("%-44s loss %8.1e/%.1e dh %8.1e/%.1e dw %8.1e/%.1e logp %8.1e/%.1e greedy %lld\n", name.c_str(), loss_error, loss_limit, dhidden_error,
              dhidden_limit, dweight_error, dweight_limit, probability_error, probability_limit, static_cast<long long>(greedy_count));
}

// A NaN must show in its row's loss, and there alone.
void not_a_number(CudaContext& context, cuda::MatmulEngine& engine, DataType type) {
  const Case c{"NaN", 40, 64, 500};
  Inputs in(c, type);
  std::fill(in.targets.begin(), in.targets.end(), 7);
  in.hidden[5 * 64 + 3] = std::nanf("");
  DeviceMatrix hidden(type, 40, 64, 64, 0), weight(type, 500, 64, 64, 0), dhidden(type, 40, 64, 64, 0), dweight(DataType::f32, 500, 64, 64, 0);
  hidden.fill(&in.hidden), weight.fill(&in.weight), dhidden.fill(nullptr), dweight.fill(&in.old_dweight);
  const DeviceMemory targets(in.targets), scale(std::vector<float>{1.f}), losses(nans(40));
  CHECK_CUDA(cudaDeviceSynchronize());
  cuda::linear_cross_entropy(context, engine, losses.as<float>(), dhidden.tensor(), dweight.tensor(), hidden.tensor(), weight.tensor(),
                             targets.as<std::int32_t>(), scale.as<float>());
  const auto got = losses.read<float>();
  int wrong = 0;
  for (int n = 0; n < 40; ++n) wrong += std::isfinite(got[static_cast<std::size_t>(n)]) == (n == 5);
  expect(wrong == 0, "a NaN shows in its row's loss and no other");
}

}  // namespace

int main() try {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  CudaContext context(0);
  const auto folder = std::filesystem::temp_directory_path() / ("linear-loss-test-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  setenv("TINYLLAMA_PLAN_CACHE", folder.c_str(), 1);
  // Vocabularies for every kernel of linear_loss.cu; 9000 rows are two chunks, 8300 leave a short one.
  const Case cases[] = {{"1 class", 5, 16, 1, 1, 0},
                        {"7 classes", 33, 24, 7},
                        {"1000 classes", 200, 64, 1000},
                        {"3001 classes", 70, 40, 3001},
                        {"9001 classes, certain", 60, 64, 9001, 8},
                        {"32000 classes", 90, 64, 32000},
                        {"60003 classes", 40, 32, 60003},
                        {"140001 classes", 24, 24, 140001},
                        {"two chunks", 9000, 32, 130},
                        {"a short chunk", 8300, 24, 65, 4},
                        {"nothing to learn", 300, 32, 500, 1, 100}};
  const auto all = [&](cuda::MatmulEngine& engine, const std::string& name, bool few) {
    for (const Case& c : cases)
      for (const DataType type : {DataType::f32, DataType::bf16})
        if (!few || c.vocabulary < 2000 || c.vocabulary == 32000) run_case(context, engine, name, c, type);
    for (const DataType type : {DataType::f32, DataType::bf16}) not_a_number(context, engine, type);
  };
  const auto own = cuda::make_own_matmul_engine(context, "a test");
  all(*own, "own", false);
  const auto engine = cuda::make_matmul_engine(context);
  std::printf("%s\n", engine->describe().c_str());
  if (engine->describe().find("own kernels") != 0) all(*engine, "cuBLASLt", true);
  std::filesystem::remove_all(folder);
  std::printf("linear_loss_test: %d checks, %d failed\n", checks, failures);
  return failures == 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::printf("FAILED with %s\n", error.what());
  return 1;
}
