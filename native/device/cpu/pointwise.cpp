#include "native/device/cpu/pointwise.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "native/core/normal.h"
#include "native/device/cpu/gemm.h"

namespace tinyllama {
namespace {

// Elements of one work item: some ten microseconds.
constexpr std::int64_t grain = 16384;
// Rows whose share of a norm's gain gradient is summed first; fixed, for equal results on any number of threads.
constexpr std::int64_t gain_rows = 64;

template <class Body>
void for_rows(CpuContext& context, std::int64_t rows, std::int64_t width, Body&& body) {
  const std::int64_t block = std::max<std::int64_t>(grain / std::max<std::int64_t>(width, 1), 1);
  context.pool.parallel_for(divide_up(rows, block), [&](std::int64_t item, int) {
    for (std::int64_t row = item * block; row < std::min(rows, (item + 1) * block); ++row) body(row);
  });
}

template <class Body>
void for_blocks(CpuContext& context, std::int64_t count, Body&& body) {
  context.pool.parallel_for(divide_up(count, grain), [&](std::int64_t item, int) {
    body(item * grain, std::min(grain, count - item * grain));
  });
}

}  // namespace

void embedding_forward(CpuContext& context, const Tensor& out, const Tensor& table, const std::int32_t* ids) {
  for_rows(context, out.rows, out.columns, [&](std::int64_t row) {
    std::memcpy(out.f32() + row * out.stride, table.f32() + ids[row] * table.stride, static_cast<std::size_t>(out.columns) * sizeof(float));
  });
}

// Work is split by columns: whatever the ids, every thread has the same share, and each element is summed in the order of the rows.
void embedding_backward(CpuContext& context, const Tensor& dtable, const Tensor& dout, const std::int32_t* ids) {
  constexpr std::int64_t slice = 32;
  context.pool.parallel_for(divide_up(dout.columns, slice), [&](std::int64_t item, int) {
    const std::int64_t first = item * slice, columns = std::min(slice, dout.columns - first);
    for (std::int64_t row = 0; row < dout.rows; ++row) {
      context.kernels.add(dtable.f32() + ids[row] * dtable.stride + first, dout.f32() + row * dout.stride + first, columns);
    }
  });
}

void rms_norm_forward(CpuContext& context, const Tensor& out, float* rstd, const Tensor& sum, const Tensor& x, const Tensor& delta,
                      const float* gain, float eps) {
  for_rows(context, out.rows, out.columns, [&](std::int64_t row) {
    rstd[row] = context.kernels.rms_norm_forward(out.f32() + row * out.stride, delta.data ? sum.f32() + row * sum.stride : nullptr,
                                                 x.f32() + row * x.stride, delta.data ? delta.f32() + row * delta.stride : nullptr, gain,
                                                 out.columns, eps);
  });
}

void rms_norm_again(CpuContext& context, const Tensor& out, const Tensor& x, const float* gain, const float* rstd) {
  for_rows(context, out.rows, out.columns, [&](std::int64_t row) {
    context.kernels.rms_norm_again(out.f32() + row * out.stride, x.f32() + row * x.stride, gain, rstd[row], out.columns);
  });
}

void rms_norm_backward(CpuContext& context, const Tensor& dx, float* dgain, const Tensor& normed, const Tensor& dout, const Tensor& x,
                       const float* gain, const float* rstd) {
  const std::int64_t width = dx.columns, blocks = divide_up(dx.rows, gain_rows);
  float* shares = context.tiles.request(blocks * width);
  context.pool.parallel_for(blocks, [&](std::int64_t block, int) {
    float* share = shares + block * width;
    std::fill_n(share, width, 0.f);
    for (std::int64_t row = block * gain_rows; row < std::min(dx.rows, (block + 1) * gain_rows); ++row) {
      context.kernels.rms_norm_backward(dx.f32() + row * dx.stride, share, dout.f32() + row * dout.stride, x.f32() + row * x.stride, gain,
                                        rstd[row], width);
    }
  });
  for (std::int64_t block = 1; block < blocks; ++block) context.kernels.add(shares, shares + block * width, width);
  if (blocks > 0) context.kernels.add(dgain, shares, width);
  if (normed.data) rms_norm_again(context, normed, x, gain, rstd);
}

void rotary(CpuContext& context, const Tensor& qkv, const float* cosine, const float* sine, const AttentionShape& shape, bool inverse) {
  const std::int64_t half = shape.head_size / 2, heads = shape.heads + shape.kv_heads;
  for_rows(context, qkv.rows, heads * shape.head_size, [&](std::int64_t row) {
    const std::int64_t at = row % shape.length * half;
    for (std::int64_t head = 0; head < heads; ++head) {
      context.kernels.rotary(qkv.f32() + row * qkv.stride + head * shape.head_size, cosine + at, sine + at, half, inverse ? -1.f : 1.f);
    }
  });
}

void swiglu_forward(CpuContext& context, const Tensor& act, const Tensor& gate_up) {
  for_rows(context, act.rows, act.columns, [&](std::int64_t row) {
    const float* gate = gate_up.f32() + row * gate_up.stride;
    context.kernels.swiglu_forward(act.f32() + row * act.stride, gate, gate + act.columns, act.columns);
  });
}

void swiglu_backward(CpuContext& context, const Tensor& dgate_up, const Tensor& act, const Tensor& dact, const Tensor& gate_up) {
  for_rows(context, dact.rows, dact.columns, [&](std::int64_t row) {
    const float* gate = gate_up.f32() + row * gate_up.stride;
    float* dgate = dgate_up.f32() + row * dgate_up.stride;
    float* output = act.data ? act.f32() + row * act.stride : nullptr;
    context.kernels.swiglu_backward(dgate, dgate + dact.columns, output, dact.f32() + row * dact.stride, gate, gate + dact.columns,
                                    dact.columns);
  });
}

void fill_normal(CpuContext& context, float* out, std::int64_t count, std::uint64_t seed, std::int64_t first, float deviation) {
  for_blocks(context, count, [&](std::int64_t begin, std::int64_t length) {
    const std::int64_t end = first + begin + length;
    for (std::int64_t index = first + begin; index < end;) {
      const std::array<float, 4> block = normal_block(static_cast<std::uint64_t>(index) / 4, seed);
      for (auto lane = static_cast<std::size_t>(index % 4); lane < 4 && index < end; ++lane, ++index) out[index - first] = block[lane] * deviation;
    }
  });
}

void add(CpuContext& context, float* a, const float* b, std::int64_t count) {
  for_blocks(context, count, [&](std::int64_t first, std::int64_t length) { context.kernels.add(a + first, b + first, length); });
}

void squared_norm(CpuContext& context, double* sums, const float* values, std::int64_t count) {
  constexpr std::int64_t block = 4096;
  for_blocks(context, count, [&](std::int64_t first, std::int64_t length) {
    static_assert(grain % block == 0);
    for (std::int64_t at = first; at < first + length; at += block) {
      sums[at / block] = context.kernels.squared_norm(values + at, std::min(block, first + length - at));
    }
  });
}

void adamw(CpuContext& context, float* weights, float* first_moment, float* second_moment, float* gradients, std::int64_t count,
           const AdamWArguments& arguments) {
  const AdamWFactors factors = adamw_factors(arguments);
  for_blocks(context, count, [&](std::int64_t first, std::int64_t length) {
    context.kernels.adamw(weights + first, first_moment + first, second_moment + first, gradients + first, length, factors);
  });
}

}  // namespace tinyllama
