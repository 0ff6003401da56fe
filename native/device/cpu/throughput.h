// What this machine reaches: the ceiling of its multiply-add units, and the product's share of it.
#pragma once
#include <cstdint>

namespace tinyllama {

struct MatmulShape {
  std::int64_t m, n, k;
  bool transpose_a, transpose_b, accumulate;
};

struct LossShape {
  std::int64_t rows, width, vocabulary;
};

// GFLOP/s of the three products of the output projection.
struct LossRates {
  double forward, input_gradient, weight_gradient;
};

// Best GFLOP/s of a loop of independent fp32 multiply-adds on registers alone, on `threads` threads, over about `seconds`.
double measure_peak(int threads, double seconds);

// Median GFLOP/s of Device::matmul for the shape, over at least `seconds` and three runs.
double measure_matmul(int threads, const MatmulShape& shape, double seconds);

// Median GFLOP/s of each product inside Device::linear_cross_entropy, over at least `seconds` and three runs. Counted with the products:
// all packing, the scaling of hidden states and the sum of the shares of dhidden; not counted: the softmax.
LossRates measure_loss_products(int threads, const LossShape& shape, double seconds);

}  // namespace tinyllama
