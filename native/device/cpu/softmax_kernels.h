// Softmax: down the columns of transposed logits (cross entropy), and along the rows of attention's score tiles.
#pragma once
#include "native/device/cpu/kernels.h"
#include "native/device/cpu/simd_math.h"

namespace tinyllama {
namespace {

// The columns' loops go row by row, with the running results in memory: the tile is then read in order.
template <class V>
void column_maxima(float* maxima, const float* tile, std::int64_t stride, std::int64_t rows, std::int64_t columns) {
  __builtin_memcpy(maxima, tile, static_cast<std::size_t>(columns) * sizeof(float));
  for (std::int64_t row = 1; row < rows; ++row) {
    const float* from = tile + row * stride;
    for_each_vector<V>(columns, [&](std::int64_t i, auto part) {
      part.store(maxima + i, V::max(part.load(maxima + i), part.load(from + i)));
    });
  }
}

template <class V>
void column_exponentials(float* sums, const float* tile, std::int64_t stride, const float* maxima, const float* weights, std::int64_t rows,
                         std::int64_t columns) {
  for_each_vector<V>(columns, [&](std::int64_t i, auto part) { part.store(sums + i, V::zero()); });
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* at = tile + row * stride;
    for_each_vector<V>(columns, [&](std::int64_t i, auto part) {
      const auto value = exponential<V>(V::sub(part.load(at + i), part.load(maxima + i)));
      const auto weight = weights ? part.load(weights + row * stride + i) : V::set(1.f);
      part.store(sums + i, V::fma(value, weight, part.load(sums + i)));
    });
  }
}

template <class V>
void add_column_exponentials(float* sums, float* tile, std::int64_t stride, const float* reference, std::int64_t rows,
                             std::int64_t columns) {
  for (std::int64_t row = 0; row < rows; ++row, tile += stride) {
    for_each_vector<V>(columns, [&](std::int64_t i, auto part) {
      const auto value = exponential<V>(V::sub(part.load(tile + i), part.load(reference + i)));
      part.store(tile + i, value);
      part.store(sums + i, V::add(part.load(sums + i), value));
    });
  }
}

template <class V>
float softmax_row(float* scores, std::int64_t visible, std::int64_t columns, float scale, float* maximum, float* sum) {
  const auto factor = V::set(scale);
  auto maxima = V::set(*maximum);
  std::int64_t i = 0;
  for (; i + V::width <= visible; i += V::width) maxima = V::max(maxima, V::mul(V::load(scores + i), factor));
  float top = V::maximum(maxima);
  for (; i < visible; ++i) top = scores[i] * scale > top ? scores[i] * scale : top;
  const auto shift = V::set(top);
  auto sums = V::zero();
  float tail = 0.f;
  for_each_vector<V>(visible, [&](std::int64_t at, auto part) {
    const auto value = exponential<V>(V::sub(V::mul(part.load(scores + at), factor), shift));
    part.store(scores + at, value);
    if (at + V::width <= visible) sums = V::add(sums, value);
  });
  for (i = visible / V::width * V::width; i < visible; ++i) tail += scores[i];
  for (i = visible; i < columns; ++i) scores[i] = 0.f;
  float correction[V::width];
  V::store(correction, exponential<V>(V::set(*maximum - top)));
  *sum = *sum * correction[0] + (V::sum(sums) + tail);
  *maximum = top;
  return correction[0];
}

template <class V>
void softmax_row_backward(float* scores, float* dscores, std::int64_t visible, std::int64_t columns, float scale, float lse, float delta) {
  const auto factor = V::set(scale), shift = V::set(lse), mean = V::set(delta);
  for_each_vector<V>(visible, [&](std::int64_t i, auto part) {
    const auto probability = exponential<V>(V::sub(V::mul(part.load(scores + i), factor), shift));
    part.store(scores + i, probability);
    part.store(dscores + i, V::mul(V::mul(probability, V::sub(part.load(dscores + i), mean)), factor));
  });
  for (std::int64_t i = visible; i < columns; ++i) scores[i] = dscores[i] = 0.f;
}

template <class V>
void scale_row(float* row, float factor, std::int64_t columns) {
  const auto by = V::set(factor);
  for_each_vector<V>(columns, [&](std::int64_t i, auto part) { part.store(row + i, V::mul(part.load(row + i), by)); });
}

template <class V>
float dot(const float* a, const float* b, std::int64_t count) {
  auto sum = V::zero();
  for_each_vector<V>(count, [&](std::int64_t i, auto part) { sum = V::fma(part.load(a + i), part.load(b + i), sum); });
  return V::sum(sum);
}

}  // namespace
}  // namespace tinyllama
