// Matrix products on register tiles, after Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), and BLIS.
// The left operand is read in place, one broadcast per row and step: its rows are contiguous (or packed), so copying it would cost more
// than it saves. The right operand comes in packed panels, one of which stays in the first-level cache while the rows stream by.
#pragma once
#include "native/device/cpu/kernels.h"

namespace tinyllama {
namespace {

// One tile of `rows` x (vectors * width) outputs; `columns` of them are real.
template <class V, int rows, int vectors, bool transposed>
void gemm_tile(std::int64_t depth, const float* left, std::int64_t left_stride, const float* right, float* out, std::int64_t out_stride,
               std::int64_t columns, bool accumulate) {
  constexpr int width = V::width;
  typename V::Register sums[rows][vectors];
#pragma GCC unroll 16
  for (int row = 0; row < rows; ++row) {
    __builtin_prefetch(out + row * out_stride, 1);
#pragma GCC unroll 4
    for (int vector = 0; vector < vectors; ++vector) sums[row][vector] = V::zero();
  }
#pragma GCC unroll 4
  for (std::int64_t k = 0; k < depth; ++k) {
    typename V::Register columns_of_k[vectors];
#pragma GCC unroll 4
    for (int vector = 0; vector < vectors; ++vector) columns_of_k[vector] = V::load(right + vector * width);
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row) {
      const auto value = V::broadcast(transposed ? left + row : left + row * left_stride);
#pragma GCC unroll 4
      for (int vector = 0; vector < vectors; ++vector) sums[row][vector] = V::fma(value, columns_of_k[vector], sums[row][vector]);
    }
    right += vectors * width;
    left += transposed ? left_stride : 1;
  }
  if (columns == vectors * width) {
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 4
      for (int vector = 0; vector < vectors; ++vector) {
        float* at = out + row * out_stride + vector * width;
        V::store(at, accumulate ? V::add(V::load(at), sums[row][vector]) : sums[row][vector]);
      }
    }
    return;
  }
#pragma GCC unroll 16
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 4
    for (int vector = 0; vector < vectors; ++vector) {
      const std::int64_t left_over = columns - vector * width;
      float* at = out + row * out_stride + vector * width;
      if (left_over >= width) {
        V::store(at, accumulate ? V::add(V::load(at), sums[row][vector]) : sums[row][vector]);
      } else if (left_over > 0) {
        const int part = static_cast<int>(left_over);
        V::store_part(at, part, accumulate ? V::add(V::load_part(at, part), sums[row][vector]) : sums[row][vector]);
      }
    }
  }
}

// The tile with as many rows as are left at the lower edge.
template <class V, int rows, bool transposed>
void gemm_edge(std::int64_t real_rows, std::int64_t depth, const float* left, std::int64_t left_stride, const float* right, float* out,
               std::int64_t out_stride, std::int64_t columns, bool accumulate) {
  if constexpr (rows > 0) {
    if (real_rows == rows) {
      gemm_tile<V, rows, V::tile_vectors, transposed>(depth, left, left_stride, right, out, out_stride, columns, accumulate);
    } else {
      gemm_edge<V, rows - 1, transposed>(real_rows, depth, left, left_stride, right, out, out_stride, columns, accumulate);
    }
  }
}

template <class V, bool transposed>
void gemm_panels(const GemmBlock& block) {
  constexpr std::int64_t tile_columns = V::width * V::tile_vectors;
  const float* right = block.right;
  for (std::int64_t column = 0; column < block.columns; column += tile_columns, right += block.right_panel) {
    const std::int64_t columns = block.columns - column < tile_columns ? block.columns - column : tile_columns;
    const float* left = block.left;
    float* out = block.out + column;
    std::int64_t row = 0;
    for (; row + V::tile_rows <= block.rows; row += V::tile_rows) {
      gemm_tile<V, V::tile_rows, V::tile_vectors, transposed>(block.depth, left, block.left_stride, right, out, block.out_stride, columns,
                                                              block.accumulate);
      left += block.left_group;
      out += V::tile_rows * block.out_stride;
    }
    if (row < block.rows) {
      gemm_edge<V, V::tile_rows - 1, transposed>(block.rows - row, block.depth, left, block.left_stride, right, out, block.out_stride,
                                                 columns, block.accumulate);
    }
  }
}

template <class V>
void gemm_block(const GemmBlock& block) {
  if (block.left_transposed) {
    gemm_panels<V, true>(block);
  } else {
    gemm_panels<V, false>(block);
  }
}

// Row by row of the stored matrix, so that memory is read in order.
template <class V>
void pack_right(float* panels, std::int64_t panel, const float* right, std::int64_t stride, std::int64_t depth, std::int64_t columns) {
  constexpr std::int64_t size = V::width * V::tile_vectors, ahead = 4, line = 16;
  const std::int64_t whole = columns / size * size;
  for (std::int64_t k = 0; k < depth; ++k, right += stride, panels += size) {
    if (k + ahead < depth) {
      for (std::int64_t column = 0; column < columns; column += line) __builtin_prefetch(right + ahead * stride + column);
    }
    float* to = panels;
    for (std::int64_t column = 0; column < whole; column += size, to += panel) __builtin_memcpy(to, right + column, size * sizeof(float));
    for (std::int64_t n = 0; whole < columns && n < size; ++n) to[n] = whole + n < columns ? right[whole + n] : 0.f;
  }
}

using Four = float __attribute__((vector_size(16)));

// panel[k * size + n] = from[n * stride + k] for four n and four k.
template <class V>
void transpose_four(float* panel, std::int64_t size, const float* from, std::int64_t stride) {
  Four rows[4];
  for (int n = 0; n < 4; ++n) __builtin_memcpy(&rows[n], from + n * stride, sizeof(Four));
  const Four low01 = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5), high01 = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const Four low23 = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5), high23 = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  const Four columns[4] = {__builtin_shufflevector(low01, low23, 0, 1, 4, 5), __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                           __builtin_shufflevector(high01, high23, 0, 1, 4, 5), __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
  for (int k = 0; k < 4; ++k) __builtin_memcpy(panel + k * size, &columns[k], sizeof(Four));
}

template <class V>
void pack_right_transposed(float* panels, std::int64_t panel, const float* right, std::int64_t stride, std::int64_t depth,
                           std::int64_t columns) {
  constexpr int size = V::width * V::tile_vectors;
  for (std::int64_t column = 0; column < columns; column += size, panels += panel) {
    const float* from = right + column * stride;
    const std::int64_t real = columns - column < size ? columns - column : size;
    std::int64_t k = 0;
    if (real == size) {
      for (; k + 4 <= depth; k += 4) {
        for (int n = 0; n < size; n += 4) transpose_four<V>(panels + k * size + n, size, from + n * stride + k, stride);
      }
    }
    for (; k < depth; ++k) {
      for (std::int64_t n = 0; n < size; ++n) panels[k * size + n] = n < real ? from[n * stride + k] : 0.f;
    }
  }
}

// Step k of the depth: `rows` elements in a row, to the groups' place for it. A register that is wider than a group writes into the place
// of step k + 1, which is filled later; the last step and the last group are copied exactly.
template <class V>
void pack_left_row(float* groups, std::int64_t k, std::int64_t depth, const float* left, std::int64_t rows) {
  constexpr int size = V::tile_rows;
  float* group = groups + k * size;
  std::int64_t row = 0;
  if (V::width > size && k + 1 < depth) {
    for (; row + V::width <= rows; row += size, group += depth * size) V::store(group, V::load(left + row));
  }
  for (; row + size <= rows; row += size, group += depth * size) __builtin_memcpy(group, left + row, size * sizeof(float));
  for (std::int64_t rest = 0; row < rows && rest < size; ++rest) group[rest] = row + rest < rows ? left[row + rest] : 0.f;
}

// Row by row of the stored matrix, so that memory is read in order; rows lie too far apart for the hardware to guess the next.
template <class V>
void pack_left_transposed(float* groups, const float* left, std::int64_t stride, std::int64_t depth, std::int64_t rows) {
  constexpr std::int64_t ahead = 6, line = 16;
  for (std::int64_t k = 0; k < depth; ++k, left += stride) {
    if (k + ahead < depth) {
      for (std::int64_t row = 0; row < rows; row += line) __builtin_prefetch(left + ahead * stride + row);
    }
    pack_left_row<V>(groups, k, depth, left, rows);
  }
}

template <class V>
double multiply_add_loop(std::int64_t repeats, float* sink) {
  constexpr int chains = V::tile_rows * V::tile_vectors;
  typename V::Register sums[chains];
  const auto factor = V::set(0.999999f), term = V::set(1e-6f);
#pragma GCC unroll 32
  for (int chain = 0; chain < chains; ++chain) sums[chain] = V::set(static_cast<float>(chain));
  for (std::int64_t repeat = 0; repeat < repeats; ++repeat) {
#pragma GCC unroll 32
    for (int chain = 0; chain < chains; ++chain) sums[chain] = V::fma(sums[chain], factor, term);
  }
  auto total = V::zero();
#pragma GCC unroll 32
  for (int chain = 0; chain < chains; ++chain) total = V::add(total, sums[chain]);
  *sink = V::sum(total);
  return 2.0 * chains * V::width * static_cast<double>(repeats);
}

}  // namespace
}  // namespace tinyllama
