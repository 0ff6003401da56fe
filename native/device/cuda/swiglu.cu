// SwiGLU (Shazeer 2020, "GLU Variants Improve Transformer"): act = silu(gate) * up, and its gradient.
//
// Threads walk the vectors of all rows as one sequence, two vectors a thread, so that no row length leaves lanes idle. 3 accesses of each element
// of act forward, 5 backward, 6 with `act`.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "native/device/cuda/pointwise.h"
#include "native/device/cuda/vector_access.h"

namespace tinyllama::cuda {
namespace {

constexpr int threads = 256;
constexpr int vectors = 2;

// bf16 keeps 8 bits: the special function units' own exponential and reciprocal are good for 20. fp32 gets the exact ones.
template <class T>
__device__ __forceinline__ float sigmoid(float x) {
  if constexpr (sizeof(T) == 2) {
    return __fdividef(1.f, 1.f + __expf(-x));
  } else {
    return 1.f / (1.f + expf(-x));
  }
}

template <class T>
struct SwigluRows {
  T* act;            // backward: may be null, and may be dact
  const T* gate_up;  // [gate | up]
  const T* dact;
  T* dgate_up;  // may be gate_up
  std::int64_t act_stride, gate_up_stride, dact_stride, dgate_up_stride;
  unsigned vectors_per_row, count;  // count: of all rows, below 2^31
};

template <class T, int width>
__global__ __launch_bounds__(threads) void forward(SwigluRows<T> a) {
  Vector<T, width> gate[vectors], up[vectors];
  std::int64_t row[vectors];
  unsigned column[vectors];
  const unsigned first = blockIdx.x * (threads * vectors) + threadIdx.x;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const unsigned at = first + v * threads;
    if (at >= a.count) continue;
    row[v] = at / a.vectors_per_row;
    column[v] = at % a.vectors_per_row * width;
    const T* source = a.gate_up + row[v] * a.gate_up_stride + column[v];
    gate[v] = load_once<width>(source);
    up[v] = load_once<width>(source + a.vectors_per_row * width);
  }
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    if (first + v * threads >= a.count) continue;
    const Floats<width> g = to_floats(gate[v]), u = to_floats(up[v]);
    Floats<width> y;
#pragma unroll
    for (int i = 0; i < width; ++i) y.lane[i] = g.lane[i] * sigmoid<T>(g.lane[i]) * u.lane[i];
    store(a.act + row[v] * a.act_stride + column[v], to_vector<T>(y));
  }
}

// d silu(g) / dg = s + g * s * (1 - s), s = sigmoid(g). A thread has read all that it overwrites, so outputs may be inputs.
template <class T, int width>
__global__ __launch_bounds__(threads) void backward(SwigluRows<T> a) {
  Vector<T, width> gate[vectors], up[vectors], dact[vectors];
  std::int64_t row[vectors];
  unsigned column[vectors];
  const unsigned first = blockIdx.x * (threads * vectors) + threadIdx.x, half = a.vectors_per_row * width;
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    const unsigned at = first + v * threads;
    if (at >= a.count) continue;
    row[v] = at / a.vectors_per_row;
    column[v] = at % a.vectors_per_row * width;
    const T* source = a.gate_up + row[v] * a.gate_up_stride + column[v];
    gate[v] = load_once<width>(source);
    up[v] = load_once<width>(source + half);
    dact[v] = load_once<width>(a.dact + row[v] * a.dact_stride + column[v]);
  }
#pragma unroll
  for (int v = 0; v < vectors; ++v) {
    if (first + v * threads >= a.count) continue;
    const Floats<width> g = to_floats(gate[v]), u = to_floats(up[v]), dy = to_floats(dact[v]);
    Floats<width> dgate, dup, y;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float s = sigmoid<T>(g.lane[i]), silu = g.lane[i] * s;
      dgate.lane[i] = dy.lane[i] * u.lane[i] * fmaf(silu, 1.f - s, s);
      dup.lane[i] = dy.lane[i] * silu;
      y.lane[i] = silu * u.lane[i];
    }
    T* target = a.dgate_up + row[v] * a.dgate_up_stride + column[v];
    store(target, to_vector<T>(dgate));
    store(target + half, to_vector<T>(dup));
    if (a.act) store(a.act + row[v] * a.act_stride + column[v], to_vector<T>(y));
  }
}

// Slices of rows whose vectors 32 bits can count.
template <class Body>
void for_slices(std::int64_t rows, std::int64_t vectors_per_row, Body&& body) {
  const std::int64_t most = std::max<std::int64_t>(std::numeric_limits<std::int32_t>::max() / vectors_per_row, 1);
  for (std::int64_t first = 0; first < rows; first += most) body(first, std::min(most, rows - first));
}

// gate_up's rows are whole vectors, and so are both halves.
template <class T>
bool halves_in_vectors(const Tensor& tensor) {
  return in_vectors<T>(tensor) && tensor.columns / 2 % full_width<T> == 0;
}

Tensor slice(const Tensor& tensor, std::int64_t first, std::int64_t count) { return tensor.data ? tensor.slice(first, count) : tensor; }

template <class T, int width, bool is_backward>
void launch(CudaContext& context, const Tensor& act, const Tensor& gate_up, const Tensor& dact, const Tensor& dgate_up) {
  const std::int64_t per_row = gate_up.columns / 2 / width;
  if (per_row == 0) return;
  for_slices(gate_up.rows, per_row, [&](std::int64_t first, std::int64_t rows) {
    const Tensor y = slice(act, first, rows), x = slice(gate_up, first, rows), dy = slice(dact, first, rows), dx = slice(dgate_up, first, rows);
    const SwigluRows<T> arguments{data_of<T>(y), data_of<T>(x), data_of<T>(dy),  data_of<T>(dx),
                                  y.stride,      x.stride,      dy.stride,       dx.stride,
                                  static_cast<unsigned>(per_row), static_cast<unsigned>(per_row * rows)};
    const unsigned blocks = blocks_for(per_row * rows, threads * vectors);
    if constexpr (is_backward) {
      backward<T, width><<<blocks, threads, 0, context.stream()>>>(arguments);
    } else {
      forward<T, width><<<blocks, threads, 0, context.stream()>>>(arguments);
    }
    CHECK_LAUNCH(is_backward ? "swiglu_backward" : "swiglu_forward");
  });
}

}  // namespace

void swiglu_forward(CudaContext& context, const Tensor& act, const Tensor& gate_up) {
  require_one_type("swiglu_forward", act, gate_up);
  with_type(act.type, [&](auto type) {
    using T = decltype(type);
    if (in_vectors<T>(act) && halves_in_vectors<T>(gate_up)) {
      launch<T, full_width<T>, false>(context, act, gate_up, {}, {});
    } else {
      launch<T, 1, false>(context, act, gate_up, {}, {});
    }
  });
}

void swiglu_backward(CudaContext& context, const Tensor& dgate_up, const Tensor& act, const Tensor& dact, const Tensor& gate_up) {
  require_one_type("swiglu_backward", dgate_up, act, dact, gate_up);
  with_type(dact.type, [&](auto type) {
    using T = decltype(type);
    if (in_vectors<T>(act) && in_vectors<T>(dact) && halves_in_vectors<T>(gate_up) && halves_in_vectors<T>(dgate_up)) {
      launch<T, full_width<T>, true>(context, act, gate_up, dact, dgate_up);
    } else {
      launch<T, 1, true>(context, act, gate_up, dact, dgate_up);
    }
  });
}

}  // namespace tinyllama::cuda
