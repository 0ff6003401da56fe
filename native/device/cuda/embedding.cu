// Embedding: rows gathered forward, summed per token id backward.
//
// Backward, whatever the ids, has the same work for every block: the sorted rows are cut into windows of 32. A run of one id inside a window is
// added to the table at once; a run that goes over a window's border leaves its share in scratch memory, at most two shares a window (the run that
// comes in, the run that goes out), and a second kernel adds a run's shares in order. Rows are summed in ascending order within a share, shares in
// ascending order within a run, without atomics.
#include <type_traits>

#include "native/device/cuda/pointwise.h"
#include "native/device/cuda/row_sort.h"
#include "native/device/cuda/vector_access.h"

namespace tinyllama::cuda {
namespace {

constexpr int window = 32;

// A warp copies a row: two accesses of each element.
template <class T, int width>
__global__ __launch_bounds__(256) void gather(T* out, std::int64_t out_stride, const T* table, std::int64_t table_stride, const std::int32_t* ids,
                                              std::int64_t rows, int count) {
  constexpr int ahead = 8;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  const T* source = table + ids[row] * table_stride;
  T* target = out + row * out_stride;
  for (int first = threadIdx.x % 32; first < count; first += 32 * ahead) {
    Vector<T, width> part[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (first + i * 32 < count) part[i] = load<width>(source + (first + i * 32) * width);
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (first + i * 32 < count) store(target + (first + i * 32) * width, part[i]);
  }
}

template <int width>
__device__ __forceinline__ void store_floats(float* address, const Floats<width>& values) {
  constexpr int piece = width % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int i = 0; i < width; i += piece) {
    Vector<float, piece> part;
#pragma unroll
    for (int k = 0; k < piece; ++k) part.lane[k] = values.lane[i + k];
    store(address + i, part);
  }
}

template <int width>
__device__ __forceinline__ void add_floats(Floats<width>& sum, const float* address) {
  constexpr int piece = width % 4 == 0 ? 4 : 1;
#pragma unroll
  for (int i = 0; i < width; i += piece) {
    const Vector<float, piece> part = load<piece>(address + i);
#pragma unroll
    for (int k = 0; k < piece; ++k) sum.lane[i + k] += part.lane[k];
  }
}

template <class T>
struct Scatter {
  float* dtable;
  const T* dout;
  float* shares;  // (windows, 2, columns): of the run that comes in, of the run that goes out
  SortedRows sorted;
  std::int64_t dtable_stride, dout_stride, rows;
  int columns;
};

// The id before or after position `at`, or -1 at the ends.
__device__ __forceinline__ std::int32_t id_at(const SortedRows& sorted, std::int64_t at, std::int64_t rows) {
  return at < 0 || at >= rows ? -1 : sorted.ids[at];
}

// Block (window, piece of the columns); a thread has one vector of the columns. dout is read once; each run reads and writes its row of the table.
template <class T, int width, int threads>
__global__ __launch_bounds__(threads) void sum_windows(Scatter<T> a) {
  constexpr int ahead = 8;
  __shared__ std::int32_t ids[window], rows[window];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * window;
  const int length = static_cast<int>(a.rows - first < window ? a.rows - first : window);
  if (threadIdx.x < window && static_cast<int>(threadIdx.x) < length) {
    ids[threadIdx.x] = a.sorted.ids[first + threadIdx.x];
    rows[threadIdx.x] = a.sorted.rows[first + threadIdx.x];
  }
  __syncthreads();
  const int column = (static_cast<int>(blockIdx.y) * threads + static_cast<int>(threadIdx.x)) * width;
  if (column >= a.columns) return;
  const std::int32_t before = id_at(a.sorted, first - 1, a.rows), after = id_at(a.sorted, first + length, a.rows);
  float* shares = a.shares + static_cast<std::int64_t>(blockIdx.x) * 2 * a.columns + column;
  Floats<width> sum{};
  bool comes_in = ids[0] == before;
  for (int start = 0; start < length; start += ahead) {
    Vector<T, width> part[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (start + i < length) part[i] = load_once<width>(a.dout + rows[start + i] * a.dout_stride + column);
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      const int at = start + i;
      if (at >= length) continue;
      const Floats<width> values = to_floats(part[i]);
#pragma unroll
      for (int k = 0; k < width; ++k) sum.lane[k] += values.lane[k];
      const bool last = at + 1 == length;
      if (!last && ids[at + 1] == ids[at]) continue;  // the run goes on inside the window
      if (comes_in) {
        store_floats(shares, sum);
      } else if (last && after == ids[at]) {
        store_floats(shares + a.columns, sum);
      } else {
        float* target = a.dtable + ids[at] * a.dtable_stride + column;
        add_floats(sum, target);
        store_floats(target, sum);
      }
      comes_in = false;
      sum = Floats<width>{};
    }
  }
}

// Block (window, piece of the columns): where a run begins in this window and goes out of it, its shares go to the table.
template <class T, int width, int threads>
__global__ __launch_bounds__(threads) void sum_shares(Scatter<T> a) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * window, next = first + window;
  if (next >= a.rows) return;
  const std::int32_t id = a.sorted.ids[next];
  if (a.sorted.ids[next - 1] != id || (a.sorted.ids[first] == id && id_at(a.sorted, first - 1, a.rows) == id)) return;
  const int column = (static_cast<int>(blockIdx.y) * threads + static_cast<int>(threadIdx.x)) * width;
  if (column >= a.columns) return;
  // The windows that the run comes into are blockIdx.x + 1 to end - 1; ids ascend, so halving finds the end of a run of any length.
  std::int64_t end = blockIdx.x + 2, beyond = gridDim.x;
  while (end < beyond) {
    const std::int64_t middle = (end + beyond) / 2;
    if (a.sorted.ids[middle * window] == id) {
      end = middle + 1;
    } else {
      beyond = middle;
    }
  }
  const float* shares = a.shares + column;
  Floats<width> sum{};
  add_floats(sum, shares + (static_cast<std::int64_t>(blockIdx.x) * 2 + 1) * a.columns);
#pragma unroll 8
  for (std::int64_t w = blockIdx.x + 1; w < end; ++w) add_floats(sum, shares + w * 2 * a.columns);
  float* target = a.dtable + id * a.dtable_stride + column;
  add_floats(sum, target);
  store_floats(target, sum);
}

std::size_t round_up(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

template <class T, int width>
void scatter(CudaContext& context, Scatter<T> arguments, const std::int32_t* ids, std::int64_t id_end) {
  constexpr int threads = 128;
  const unsigned windows = blocks_for(arguments.rows, window);
  const std::size_t sort_bytes = round_up(row_sort_bytes(arguments.rows));
  auto* memory = static_cast<std::byte*>(
      context.scratch(sort_bytes + static_cast<std::size_t>(windows) * 2 * arguments.columns * sizeof(float)));
  arguments.sorted = sort_rows(context, ids, arguments.rows, id_end, memory);
  arguments.shares = reinterpret_cast<float*>(memory + sort_bytes);
  const dim3 grid(windows, blocks_for(arguments.columns, threads * width));
  sum_windows<T, width, threads><<<grid, threads, 0, context.stream()>>>(arguments);
  CHECK_LAUNCH("embedding_backward");
  sum_shares<T, width, threads><<<grid, threads, 0, context.stream()>>>(arguments);
  CHECK_LAUNCH("embedding_backward");
}

}  // namespace

void embedding_forward(CudaContext& context, const Tensor& out, const Tensor& table, const std::int32_t* ids) {
  require_one_type("embedding_forward", out, table);
  if (out.rows == 0) return;
  with_type(out.type, [&](auto type) {
    using T = decltype(type);
    auto launch = [&](auto width) {
      gather<T, width()><<<blocks_for(out.rows, 8), 256, 0, context.stream()>>>(data_of<T>(out), out.stride, data_of<T>(table), table.stride, ids,
                                                                               out.rows, static_cast<int>(out.columns) / width());
      CHECK_LAUNCH("embedding_forward");
    };
    if (in_vectors<T>(out) && in_vectors<T>(table)) {
      launch(std::integral_constant<int, full_width<T>>{});
    } else {
      launch(std::integral_constant<int, 1>{});
    }
  });
}

void embedding_backward(CudaContext& context, const Tensor& dtable, const Tensor& dout, const std::int32_t* ids) {
  require(dtable.type == DataType::f32, "embedding_backward: the table's gradient must be f32");
  if (dout.rows == 0) return;
  with_type(dout.type, [&](auto type) {
    using T = decltype(type);
    const Scatter<T> arguments{dtable.f32(),  data_of<T>(dout), nullptr,   {nullptr, nullptr},
                               dtable.stride, dout.stride,      dout.rows, static_cast<int>(dout.columns)};
    if (in_vectors<T>(dout) && in_vectors<float>(dtable)) {
      scatter<T, full_width<T>>(context, arguments, ids, dtable.rows);
    } else {
      scatter<T, 1>(context, arguments, ids, dtable.rows);
    }
  });
}

}  // namespace tinyllama::cuda
