// RMS norm: forward with the residual addition, once more, backward. The kernels are in norm_kernels.h and norm_backward_kernels.h; here their
// shapes are chosen.
#include <algorithm>
#include <type_traits>

#include "native/device/cuda/norm_backward_kernels.h"
#include "native/device/cuda/pointwise.h"

namespace tinyllama::cuda {
namespace {

// Threads along a row and 16-byte vectors of each, as compile-time constants.
template <int row_threads_, int vectors_>
struct RowShape {
  static constexpr int row_threads = row_threads_, vectors = vectors_, block = block_threads<row_threads_>;
};

// Calls body with the first of the shapes that holds a row of `count` vectors; false where none does.
template <class... Shapes, class Body>
bool with_row_shape(std::int64_t count, Body&& body) {
  auto fits = [&](auto shape) {
    if (count > shape.row_threads * shape.vectors) return false;
    body(shape);
    return true;
  };
  return (fits(Shapes{}) || ...);
}

// Where a thread reads several arrays, one vector of each keeps enough in flight and leaves room for more threads.
template <class Body>
bool with_single_vectors(std::int64_t count, Body&& body) {
  return with_row_shape<RowShape<32, 1>, RowShape<32, 2>, RowShape<128, 1>, RowShape<256, 1>, RowShape<512, 1>, RowShape<512, 2>>(count, body);
}

// Where it reads one, two vectors of it: at width 2048 on an H200 91 % of a copy, with one 83 %.
template <class Body>
bool with_paired_vectors(std::int64_t count, Body&& body) {
  return with_row_shape<RowShape<32, 1>, RowShape<32, 2>, RowShape<64, 2>, RowShape<128, 2>, RowShape<256, 2>, RowShape<512, 2>>(count, body);
}

// Two accesses of each element.
template <class T, int width>
__global__ __launch_bounds__(256) void norm_again(T* out, std::int64_t out_stride, const T* x, std::int64_t x_stride, const float* gain,
                                                  const float* rstd, std::int64_t rows, int count) {
  // blockDim.x threads along a row, blockDim.y rows.
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const float r = __ldg(rstd + row);
#pragma unroll 2
  for (int at = threadIdx.x; at < count; at += blockDim.x) {
    const Floats<width> value = to_floats(load_once<width>(x + row * x_stride + at * width)), g = load_floats<width>(gain + at * width);
    Floats<width> y;
#pragma unroll
    for (int i = 0; i < width; ++i) y.lane[i] = normed_value(value.lane[i], r, g.lane[i]);
    store(out + row * out_stride + at * width, to_vector<T>(y));
  }
}

template <class T>
void forward(CudaContext& context, const NormForward<T>& arguments, bool vectorized) {
  bool done = false;
  const std::int64_t count = arguments.columns / full_width<T>;
  auto launch = [&](auto shape, auto residual) {
    norm_forward_rows<T, shape.row_threads, shape.vectors, residual()>
        <<<blocks_for(arguments.rows, shape.block / shape.row_threads), shape.block, 0, context.stream()>>>(arguments);
  };
  if (vectorized && arguments.sum) done = with_single_vectors(count, [&](auto shape) { launch(shape, std::true_type{}); });
  if (vectorized && !arguments.sum) done = with_paired_vectors(count, [&](auto shape) { launch(shape, std::false_type{}); });
  if (!done) norm_forward_any<T><<<static_cast<unsigned>(arguments.rows), 256, 0, context.stream()>>>(arguments);
  CHECK_LAUNCH("rms_norm_forward");
}

template <class T>
void backward(CudaContext& context, NormBackward<T> arguments, float* dgain, bool vectorized) {
  unsigned parts = 0;
  auto share = [&](int resident, int rows_per_block) {
    parts = std::min(blocks_for(arguments.rows, rows_per_block), static_cast<unsigned>(resident * context.multiprocessors()));
    arguments.partials = static_cast<float*>(context.scratch(static_cast<std::size_t>(parts) * arguments.columns * sizeof(float)));
  };
  bool done = false;
  if (vectorized) {
    // At width 2048 on an H200 90 % of a copy; with two vectors a thread 87 %.
    done = with_single_vectors(arguments.columns / full_width<T>, [&](auto shape) {
      constexpr int row_threads = shape.row_threads, vectors = shape.vectors, block = shape.block;
      constexpr int resident = (vectors == 1 ? 1280 : 896) / block;  // 48 or 72 registers a thread
      share(resident, block / row_threads);
      norm_backward_rows<T, row_threads, vectors, 1, resident, Gain::cached><<<parts, block, 0, context.stream()>>>(arguments);
    });
  }
  if (!done) {
    share(4, 1);
    norm_backward_any<T><<<parts, 256, 0, context.stream()>>>(arguments);
  }
  CHECK_LAUNCH("rms_norm_backward");
  sum_gain_gradient<<<blocks_for(arguments.columns, gain_columns), 1024, 0, context.stream()>>>(dgain, arguments.partials, static_cast<int>(parts),
                                                                                                arguments.columns);
  CHECK_LAUNCH("rms_norm_backward");
}

}  // namespace

void rms_norm_forward(CudaContext& context, const Tensor& out, float* rstd, const Tensor& sum, const Tensor& x, const Tensor& delta,
                      const float* gain, float eps) {
  require_one_type("rms_norm_forward", out, x, delta, delta.data ? sum : Tensor{});
  if (out.rows == 0) return;
  with_type(out.type, [&](auto type) {
    using T = decltype(type);
    const Tensor written = delta.data ? sum : Tensor{};
    const NormForward<T> arguments{data_of<T>(out), rstd, data_of<T>(written), data_of<T>(x), data_of<T>(delta), gain, out.stride,
                                   written.stride, x.stride, delta.stride, out.rows, static_cast<int>(out.columns), eps};
    forward(context, arguments, in_vectors<T>(out) && in_vectors<T>(written) && in_vectors<T>(x) && in_vectors<T>(delta) && aligned(gain, 16));
  });
}

void rms_norm_again(CudaContext& context, const Tensor& out, const Tensor& x, const float* gain, const float* rstd) {
  require_one_type("rms_norm_again", out, x);
  if (out.rows == 0) return;
  with_type(out.type, [&](auto type) {
    using T = decltype(type);
    auto launch = [&](auto width) {
      const int count = static_cast<int>(out.columns) / width();
      int along = 32;
      while (along < 256 && along * 2 < count) along *= 2;
      norm_again<T, width()><<<blocks_for(out.rows, 256 / along), dim3(along, 256 / along), 0, context.stream()>>>(
          data_of<T>(out), out.stride, data_of<T>(x), x.stride, gain, rstd, out.rows, count);
    };
    if (in_vectors<T>(out) && in_vectors<T>(x) && aligned(gain, 16)) {
      launch(std::integral_constant<int, full_width<T>>{});
    } else {
      launch(std::integral_constant<int, 1>{});
    }
    CHECK_LAUNCH("rms_norm_again");
  });
}

void rms_norm_backward(CudaContext& context, const Tensor& dx, float* dgain, const Tensor& normed, const Tensor& dout, const Tensor& x,
                       const float* gain, const float* rstd) {
  require_one_type("rms_norm_backward", dx, normed, dout, x);
  if (dx.rows == 0) return;
  with_type(dx.type, [&](auto type) {
    using T = decltype(type);
    const NormBackward<T> arguments{data_of<T>(dx), nullptr, data_of<T>(normed), data_of<T>(dout), data_of<T>(x), gain, rstd, dx.stride,
                                    normed.stride, dout.stride, x.stride, dx.rows, static_cast<int>(dx.columns)};
    backward(context, arguments, dgain, in_vectors<T>(dx) && in_vectors<T>(normed) && in_vectors<T>(dout) && in_vectors<T>(x) && aligned(gain, 16));
  });
}

}  // namespace tinyllama::cuda
