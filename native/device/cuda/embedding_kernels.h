// Kernels of the embedding: rows gathered forward, summed per token id backward.
//
// Backward, whatever the ids, has the same work for every block: the sorted rows are cut into windows of 32, and the windows into groups of 32. A
// run of one id inside a window is added to the table at once. A run that goes over a window's border leaves its shares in scratch memory, at
// most two a window (the run that comes in, the run that goes out); a second kernel adds a run's shares within a group, and a third adds what runs
// over a group's border have left. Rows are summed in ascending order within a share, shares in ascending order within a group, groups in
// ascending order, without atomics.
#pragma once
#include "native/device/cuda/row_sort.h"
#include "native/device/cuda/vector_access.h"

namespace tinyllama::cuda {

inline constexpr int window = 32, group = 32;  // rows, windows

// A warp copies a row: two accesses of each element. Rows of the table come again, so what is written leaves the cache first.
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
      if (first + i * 32 < count) store_once(target + (first + i * 32) * width, part[i]);
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

// What becomes of the sum at a row: nothing while its run goes on in the window.
enum class Fate : std::uint8_t { goes_on, share_of_coming, share_of_going, table };

// Block (window, piece of the columns); a thread has `width` neighbouring columns. dout is read once; each run reads and writes its row of the
// table, which is asked for
// together with the `ahead` rows of dout that are in flight.
template <class T, int width, int threads, int ahead, int resident>
__global__ __launch_bounds__(threads, resident) void sum_windows(Scatter<T> a) {
  static_assert(window % ahead == 0);
  __shared__ std::int32_t ids[window], rows[window];
  __shared__ Fate fates[window];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * window;
  const int length = static_cast<int>(a.rows - first < window ? a.rows - first : window);
  if (threadIdx.x < window) {
    const std::int64_t at = first + threadIdx.x;
    const std::int32_t id = id_at(a.sorted, at, a.rows);
    Fate fate = Fate::goes_on;
    if (at < a.rows) {
      const bool comes_in = id == id_at(a.sorted, first - 1, a.rows), goes_on = id == id_at(a.sorted, at + 1, a.rows);
      const bool last = static_cast<int>(threadIdx.x) + 1 == length;
      fate = goes_on && !last ? Fate::goes_on : comes_in ? Fate::share_of_coming : goes_on ? Fate::share_of_going : Fate::table;
      rows[threadIdx.x] = a.sorted.rows[at];
    }
    ids[threadIdx.x] = id;
    fates[threadIdx.x] = fate;
  }
  __syncthreads();
  const int column = (static_cast<int>(blockIdx.y) * threads + static_cast<int>(threadIdx.x)) * width;
  if (column >= a.columns) return;
  float* shares = a.shares + static_cast<std::int64_t>(blockIdx.x) * 2 * a.columns + column;
  Floats<width> sum{};
  for (int start = 0; start < length; start += ahead) {
    Vector<T, width> part[ahead];
    Floats<width> old[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (start + i < length) part[i] = load_once<width>(a.dout + rows[start + i] * a.dout_stride + column);
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      old[i] = Floats<width>{};
      if (fates[start + i] == Fate::table) add_floats(old[i], a.dtable + ids[start + i] * a.dtable_stride + column);
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (start + i >= length) continue;
      const Floats<width> values = to_floats(part[i]);
#pragma unroll
      for (int k = 0; k < width; ++k) sum.lane[k] += values.lane[k];
      const Fate fate = fates[start + i];
      if (fate == Fate::goes_on) continue;
      if (fate == Fate::table) {
#pragma unroll
        for (int k = 0; k < width; ++k) sum.lane[k] += old[i].lane[k];
        store_floats(a.dtable + ids[start + i] * a.dtable_stride + column, sum);
      } else {
        store_floats(shares + (fate == Fate::share_of_going ? a.columns : 0), sum);
      }
      sum = Floats<width>{};
    }
  }
}

// sum += `count` shares, `step` floats apart, in their order.
template <int width>
__device__ __forceinline__ void add_shares(Floats<width>& sum, const float* shares, std::int64_t step, int count) {
  constexpr int ahead = 8;
  for (int start = 0; start < count; start += ahead) {
    Floats<width> part[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      part[i] = Floats<width>{};
      if (start + i < count) add_floats(part[i], shares + (start + i) * step);
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (start + i >= count) continue;
#pragma unroll
      for (int k = 0; k < width; ++k) sum.lane[k] += part[i].lane[k];
    }
  }
}

// How many of the positions at, at + step, … before `end`, at most 32, hold `id`, which no later one does where one does not. By a whole warp.
__device__ __forceinline__ int count_of_id(const SortedRows& sorted, std::int32_t id, std::int64_t at, std::int64_t step, std::int64_t end) {
  const std::int64_t own = at + static_cast<int>(threadIdx.x % 32) * step;
  return __popc(__ballot_sync(0xffffffffu, own < end && sorted.ids[own] == id));
}

template <class T, int width>
__device__ __forceinline__ void add_to_table(const Scatter<T>& a, std::int32_t id, int column, Floats<width>& sum) {
  float* target = a.dtable + id * a.dtable_stride + column;
  add_floats(sum, target);
  store_floats(target, sum);
}

// Block (window, piece of the columns): the shares of a run within this window's group, where the run begins in this window, or where it comes into
// the group and this is the first window.
template <class T, int width, int threads>
__global__ __launch_bounds__(threads) void sum_shares(Scatter<T> a) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * window, next = first + window;
  const std::int64_t border = (blockIdx.x / group + 1) * static_cast<std::int64_t>(group) * window, end = a.rows < border ? a.rows : border;
  const std::int32_t first_id = a.sorted.ids[first];
  const bool comes_in = id_at(a.sorted, first - 1, a.rows) == first_id;
  const int column = (static_cast<int>(blockIdx.y) * threads + static_cast<int>(threadIdx.x)) * width;
  float* shares = a.shares + static_cast<std::int64_t>(blockIdx.x) * 2 * a.columns + column;
  const std::int64_t step = 2 * static_cast<std::int64_t>(a.columns);
  if (blockIdx.x % group == 0 && comes_in) {
    const int count = count_of_id(a.sorted, first_id, first, window, end);
    if (count > 1 && column < a.columns) {
      Floats<width> sum{};
      add_shares(sum, shares, step, count);
      store_floats(shares, sum);
    }
  }
  if (next >= a.rows) return;
  const std::int32_t id = a.sorted.ids[next];
  if (a.sorted.ids[next - 1] != id || (comes_in && first_id == id)) return;
  const int count = count_of_id(a.sorted, id, next, window, end);
  if (column >= a.columns) return;
  Floats<width> sum{};
  add_floats(sum, shares + a.columns);
  add_shares(sum, shares + step, step, count);
  if (id_at(a.sorted, border, a.rows) == id) {
    store_floats(shares + a.columns, sum);
  } else {
    add_to_table<T, width>(a, id, column, sum);
  }
}

// Block (group, piece of the columns): where a run begins in this group and goes over its end, what it has left in the groups goes to the table.
template <class T, int width, int threads>
__global__ __launch_bounds__(threads) void sum_groups(Scatter<T> a) {
  constexpr std::int64_t group_rows = static_cast<std::int64_t>(group) * window;
  const std::int64_t first = blockIdx.x * group_rows, border = first + group_rows;
  const std::int32_t id = id_at(a.sorted, border, a.rows);
  if (border >= a.rows || a.sorted.ids[border - 1] != id) return;
  // The run comes into the windows from some one on to the end of the group; it begins in the window before.
  const std::int64_t own = first + static_cast<int>(threadIdx.x % 32) * window;
  const unsigned into = __ballot_sync(0xffffffffu, a.sorted.ids[own] == id && id_at(a.sorted, own - 1, a.rows) == id);
  if (into & 1u) return;
  const int begins = into == 0 ? group - 1 : __ffs(static_cast<int>(into)) - 2;
  const int column = (static_cast<int>(blockIdx.y) * threads + static_cast<int>(threadIdx.x)) * width;
  const float* shares = a.shares + (column < a.columns ? column : 0);
  const std::int64_t window_floats = 2 * static_cast<std::int64_t>(a.columns);
  Floats<width> sum{};
  add_floats(sum, shares + (static_cast<std::int64_t>(blockIdx.x) * group + begins) * window_floats + a.columns);
  int count = 0;
  for (std::int64_t at = border;; at += 32 * group_rows) {
    count = count_of_id(a.sorted, id, at, group_rows, a.rows);
    add_shares(sum, shares + at / window * window_floats, group * window_floats, count);
    if (count < 32) break;
  }
  if (column < a.columns) add_to_table<T, width>(a, id, column, sum);
}

}  // namespace tinyllama::cuda
