// Rotary position embedding (Su et al. 2021, "RoFormer") on q and k of the packed rows, in place, half-split pairing.
//
// A thread keeps one piece of a row's cosines and sines in registers and turns two heads by it: the table is read once for
// every two heads, and by all of them but the first from the cache. Two accesses of each element of q and k.
#include <algorithm>
#include <type_traits>

#include "native/device/cuda/pointwise.h"
#include "native/device/cuda/vector_access.h"

namespace tinyllama::cuda {
namespace {

constexpr int heads_per_thread = 2;

// blockDim.x threads along a row's (head group, piece) pairs, blockDim.y rows. Heads group, group + groups, …: neighbours in a warp are
// neighbours in memory.
template <class T, int width>
__global__ __launch_bounds__(256, 3) void rotate(T* qkv, std::int64_t stride, std::int64_t rows, std::int64_t length, const float* cosine,
                                              const float* sine, int heads, int half, float sign) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const int pieces = half / width, groups = (heads + heads_per_thread - 1) / heads_per_thread;
  const std::int64_t angles = row % length * half;
  for (int item = threadIdx.x; item < groups * pieces; item += blockDim.x) {
    const int group = item / pieces, at = item % pieces * width;
    T* start = qkv + row * stride + at;
    Vector<T, width> first[heads_per_thread], second[heads_per_thread];
#pragma unroll
    for (int k = 0; k < heads_per_thread; ++k) {
      const int head = group + k * groups;
      if (head >= heads) continue;
      first[k] = load_once<width>(start + head * 2 * half);
      second[k] = load_once<width>(start + head * 2 * half + half);
    }
    const Floats<width> c = load_floats<width>(cosine + angles + at), s = load_floats<width>(sine + angles + at);
#pragma unroll
    for (int k = 0; k < heads_per_thread; ++k) {
      const int head = group + k * groups;
      if (head >= heads) continue;
      const Floats<width> x = to_floats(first[k]), y = to_floats(second[k]);
      Floats<width> turned_x, turned_y;
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float sine_of = s.lane[i] * sign;
        turned_x.lane[i] = x.lane[i] * c.lane[i] - y.lane[i] * sine_of;
        turned_y.lane[i] = y.lane[i] * c.lane[i] + x.lane[i] * sine_of;
      }
      store(start + head * 2 * half, to_vector<T>(turned_x));
      store(start + head * 2 * half + half, to_vector<T>(turned_y));
    }
  }
}

}  // namespace

void rotary(CudaContext& context, const Tensor& qkv, const float* cosine, const float* sine, const AttentionShape& shape, bool inverse) {
  if (qkv.rows == 0) return;
  const int heads = static_cast<int>(shape.heads + shape.kv_heads), half = static_cast<int>(shape.head_size / 2);
  with_type(qkv.type, [&](auto type) {
    using T = decltype(type);
    auto launch = [&](auto width) {
      const int items = (heads + heads_per_thread - 1) / heads_per_thread * (half / width());
      const int along = std::min(items, 256), rows = 256 / along;
      rotate<T, width()><<<blocks_for(qkv.rows, rows), dim3(along, rows), 0, context.stream()>>>(
          data_of<T>(qkv), qkv.stride, qkv.rows, shape.length, cosine, sine, heads, half, inverse ? -1.f : 1.f);
      CHECK_LAUNCH("rotary");
    };
    constexpr int width = full_width<T>;
    if (half % width == 0 && qkv.stride % width == 0 && aligned(qkv.data, 16) && aligned(cosine, 16) && aligned(sine, 16)) {
      launch(std::integral_constant<int, width>{});
    } else {
      launch(std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace tinyllama::cuda
