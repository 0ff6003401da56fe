// What one instruction set offers to the operations of the CPU backend: the inner loops, single-threaded, on raw rows. The operations
// (gemm.cpp, attention.cpp, ...) block the work, spread it over the threads and call these.
//
// Included by files compiled for different instruction sets: declarations only, no inline functions.
#pragma once
#include <cstdint>

#include "native/device/adamw_factors.h"

namespace tinyllama {

// out(rows, columns) (+)= left · right, one block of a larger product, with a depth short enough for the caches (gemm_depth).
struct GemmBlock {
  std::int64_t rows, columns, depth;
  // Element (m, k) of the left operand, inside its group of tile_rows rows: left[m * left_stride + k], or left[k * left_stride + m] when
  // left_transposed. Groups lie left_group elements apart: tile_rows * left_stride, tile_rows, or the size of a packed group.
  const float* left;
  std::int64_t left_stride, left_group;
  bool left_transposed;
  // Packed panels of tile_columns columns, zero-padded: element (k, n) of panel p is right[p * right_panel + k * tile_columns + n].
  const float* right;
  std::int64_t right_panel;
  float* out;
  std::int64_t out_stride;
  bool accumulate;
};

struct Kernels {
  const char* name;
  int tile_rows, tile_columns;  // of the product's register tile

  // --- products
  // Each element of out: one sum over the block's depth in ascending order from zero, then added to (or put into) out.
  void (*gemm_block)(const GemmBlock& block);
  // Panels of tile_columns columns from a right operand stored (depth, columns), or stored transposed, (columns, depth).
  // Panel p goes to panels + p * panel.
  void (*pack_right)(float* panels, std::int64_t panel, const float* right, std::int64_t stride, std::int64_t depth, std::int64_t columns);
  void (*pack_right_transposed)(float* panels, std::int64_t panel, const float* right, std::int64_t stride, std::int64_t depth,
                                std::int64_t columns);
  // Groups of tile_rows rows (depth * tile_rows elements each, zero-padded) from a left operand stored transposed, (depth, rows).
  void (*pack_left_transposed)(float* groups, const float* left, std::int64_t stride, std::int64_t depth, std::int64_t rows);
  // Runs `repeats` rounds of independent multiply-adds on registers alone; returns the number of floating-point operations.
  double (*multiply_add_loop)(std::int64_t repeats, float* sink);

  // --- rows and flat arrays; `count` and `columns` count elements
  void (*add)(float* a, const float* b, std::int64_t count);
  double (*squared_norm)(const float* values, std::int64_t count);
  void (*adamw)(float* weights, float* first, float* second, float* gradients, std::int64_t count, const AdamWFactors& factors);
  void (*rms_norm_again)(float* out, const float* x, const float* gain, float rstd, std::int64_t columns);
  // One row of Device::rms_norm_forward; delta may be null. Returns 1 / sqrt(mean(sum²) + eps).
  float (*rms_norm_forward)(float* out, float* sum, const float* x, const float* delta, const float* gain, std::int64_t columns, float eps);
  // One row of Device::rms_norm_backward; dgain receives the row's share.
  void (*rms_norm_backward)(float* dx, float* dgain, const float* dout, const float* x, const float* gain, float rstd,
                            std::int64_t columns);
  // One head of one row; sine_sign is 1, or -1 for the inverse.
  void (*rotary)(float* head, const float* cosine, const float* sine, std::int64_t half, float sine_sign);
  void (*swiglu_forward)(float* act, const float* gate, const float* up, std::int64_t columns);
  void (*swiglu_backward)(float* dgate, float* dup, float* act, const float* dact, const float* gate, const float* up, std::int64_t columns);

  // --- softmax down the columns of a (rows, columns) tile of transposed logits
  // maxima(columns) of the tile.
  void (*column_maxima)(float* maxima, const float* tile, std::int64_t stride, std::int64_t rows, std::int64_t columns);
  // sums(columns) of exp(tile - maxima), weighted when weights (of the tile's shape and stride) are given.
  void (*column_exponentials)(float* sums, const float* tile, std::int64_t stride, const float* maxima, const float* weights,
                              std::int64_t rows, std::int64_t columns);
  // tile = exp(tile - reference), column by column, and added to sums(columns).
  void (*add_column_exponentials)(float* sums, float* tile, std::int64_t stride, const float* reference, std::int64_t rows,
                                  std::int64_t columns);

  // --- attention, one row of a (queries, keys) tile of scores
  // scores *= scale over the first `visible` entries; they become exp(score - maximum), the others up to `columns` zero. `maximum` and
  // `sum` are the row's running values; returns what earlier results must be multiplied with.
  float (*softmax_row)(float* scores, std::int64_t visible, std::int64_t columns, float scale, float* maximum, float* sum);
  // probabilities = exp(scores * scale - lse), zero from `visible` on; dscores = probabilities * (dscores - delta) * scale.
  void (*softmax_row_backward)(float* scores, float* dscores, std::int64_t visible, std::int64_t columns, float scale, float lse,
                               float delta);
  void (*scale_row)(float* row, float factor, std::int64_t columns);
  float (*dot)(const float* a, const float* b, std::int64_t count);
};

const Kernels& scalar_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& neon_kernels();

// The best that this machine and TINYLLAMA_SIMD allow. Throws Error for a value that names no instruction set.
const Kernels& select_kernels();

}  // namespace tinyllama
