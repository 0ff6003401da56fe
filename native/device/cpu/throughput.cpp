#include "native/device/cpu/throughput.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "native/core/error.h"
#include "native/device/cpu/cpu_context.h"
#include "native/device/cpu/gemm.h"
#include "native/device/cpu/linear_loss.h"

namespace tinyllama {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

double measure_peak(int threads, double seconds) {
  const Kernels& kernels = select_kernels();
  ThreadPool pool(threads);
  constexpr std::int64_t repeats = 400'000;
  std::vector<float> sinks(static_cast<std::size_t>(threads));
  std::vector<double> operations(static_cast<std::size_t>(threads));
  double best = 0;
  const double end = now() + seconds;
  do {
    const double start = now();
    pool.parallel_for(threads, [&](std::int64_t item, int) {
      const auto at = static_cast<std::size_t>(item);
      operations[at] = kernels.multiply_add_loop(repeats, &sinks[at]);
    });
    const double elapsed = now() - start;
    double total = 0;
    for (const double count : operations) total += count;
    best = std::max(best, total / elapsed * 1e-9);
  } while (now() < end);
  return best;
}

double measure_matmul(int threads, const MatmulShape& shape, double seconds) {
  require(shape.m >= 1 && shape.n >= 1 && shape.k >= 1, "measure: m, n and k must be at least 1");
  CpuContext context(threads, select_kernels());
  ScratchArea memory;
  float* values = memory.request(shape.m * shape.k + shape.k * shape.n + shape.m * shape.n);
  for (std::int64_t i = 0; i < shape.m * shape.k + shape.k * shape.n + shape.m * shape.n; ++i) {
    values[i] = static_cast<float>(i % 251) / 251.f - 0.5f;
  }
  const Tensor a = shape.transpose_a ? matrix(values, shape.k, shape.m) : matrix(values, shape.m, shape.k);
  values += shape.m * shape.k;
  const Tensor b = shape.transpose_b ? matrix(values, shape.n, shape.k) : matrix(values, shape.k, shape.n);
  const Tensor out = matrix(values + shape.k * shape.n, shape.m, shape.n);
  const Transpose left = shape.transpose_a ? Transpose::yes : Transpose::no, right = shape.transpose_b ? Transpose::yes : Transpose::no;
  std::vector<double> times;
  // As long again to warm up: new threads take a while to settle on cores of their own.
  const double warm = now() + seconds;
  do {
    matmul(context, out, a, left, b, right, false);
  } while (now() < warm);
  const double end = now() + seconds;
  do {
    const double start = now();
    matmul(context, out, a, left, b, right, shape.accumulate);
    times.push_back(now() - start);
  } while (now() < end || times.size() < 3);
  return 2e-9 * static_cast<double>(shape.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k) / median(times);
}

LossRates measure_loss_products(int threads, const LossShape& shape, double seconds) {
  require(shape.rows >= 1 && shape.width >= 1 && shape.vocabulary >= 1, "measure: rows, width and vocabulary must be at least 1");
  CpuContext context(threads, select_kernels());
  ScratchArea memory;
  const std::int64_t states = shape.rows * shape.width, weights = shape.vocabulary * shape.width;
  float* values = memory.request(2 * (states + weights) + shape.rows);
  for (std::int64_t i = 0; i < 2 * (states + weights); ++i) values[i] = static_cast<float>(i % 251) / 2510.f - 0.05f;
  const Tensor hidden = matrix(values, shape.rows, shape.width), dhidden = matrix(values + states, shape.rows, shape.width);
  const Tensor weight = matrix(values + 2 * states, shape.vocabulary, shape.width);
  const Tensor dweight = matrix(values + 2 * states + weights, shape.vocabulary, shape.width);
  float* losses = values + 2 * (states + weights);
  std::vector<std::int32_t> targets(static_cast<std::size_t>(shape.rows));
  for (std::size_t i = 0; i < targets.size(); ++i) {
    targets[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i) * 7919 % shape.vocabulary);
  }
  const auto run = [&](LinearLossSeconds* parts) {
    linear_cross_entropy(context, losses, dhidden, dweight, hidden, weight, targets.data(), 1e-3f, parts);
  };
  std::vector<double> forward, input_gradient, weight_gradient;
  run(nullptr);
  const double end = now() + seconds;
  do {
    LinearLossSeconds parts;
    run(&parts);
    forward.push_back(parts.forward);
    input_gradient.push_back(parts.input_gradient);
    weight_gradient.push_back(parts.weight_gradient);
  } while (now() < end || forward.size() < 3);
  const double operations = 2e-9 * static_cast<double>(states) * static_cast<double>(shape.vocabulary);
  return {operations / median(forward), operations / median(input_gradient), operations / median(weight_gradient)};
}

}  // namespace tinyllama
