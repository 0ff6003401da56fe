// What this machine reaches: the ceiling of its multiply-add units, and the product's share of it.
#pragma once
#include <cstdint>

namespace tinyllama {

struct MatmulShape {
  std::int64_t m, n, k;
  bool transpose_a, transpose_b, accumulate;
};

// Best GFLOP/s of a loop of independent fp32 multiply-adds on registers alone, on `threads` threads, over about `seconds`.
double measure_peak(int threads, double seconds);

// Median GFLOP/s of Device::matmul for the shape, over at least `seconds` and three runs.
double measure_matmul(int threads, const MatmulShape& shape, double seconds);

}  // namespace tinyllama
