#include "native/device/cpu/throughput.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "native/core/error.h"
#include "native/device/cpu/cpu_context.h"
#include "native/device/cpu/gemm.h"

namespace tinyllama {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

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
  matmul(context, out, a, left, b, right, false);
  const double end = now() + seconds;
  do {
    const double start = now();
    matmul(context, out, a, left, b, right, shape.accumulate);
    times.push_back(now() - start);
  } while (now() < end || times.size() < 3);
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return 2e-9 * static_cast<double>(shape.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k) / times[times.size() / 2];
}

}  // namespace tinyllama
