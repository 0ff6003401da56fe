// The embedding's backward kernel: rows of the gradient summed per token id and added to the table, in one launch over the sorted rows.
//
// The sorted rows are cut into windows of 16 or 32. A run of one id belongs to the window where it begins, whose block follows it into the next
// window, and to it alone: its rows are summed in ascending order and added to the table, which is read and written once. A run that
// contains a whole window and goes over a border is long: hot tokens would serialize. Each window's block leaves a long run's share in scratch
// memory, at most two a window (of the run that comes in, of the run that goes out). Whichever block leaves the last share of a run within a
// group of 32 windows sums them up, and whichever does so last of the run's groups adds them to the table. Which block that is varies, what
// it computes does not: rows in ascending order within a share, shares in ascending order within a group, groups in ascending order, no atomics on
// values.
//
// Bytes moved: dout once, each touched row of the table read and written once, shares of long runs (mostly in L2).
#pragma once
#include "native/device/cuda/row_sort.h"
#include "native/device/cuda/vector_access.h"

namespace tinyllama::cuda {

inline constexpr int group = 32;  // windows: a warp looks at one each lane

template <class T>
struct Scatter {
  float* dtable;
  const T* dout;
  float* shares = nullptr;  // (windows, 2, columns): of the run that comes in, of the run that goes out
  // Zeros: (windows, 2, pieces) shares that are left, by a run's first one in the group; (windows, pieces) groups summed up, by a run's first window.
  std::int32_t* arrivals = nullptr;
  SortedRows sorted{};
  std::int64_t dtable_stride, dout_stride, rows;
  int columns;
  int pieces = 1;  // of the columns: one a block
};

inline constexpr int arrivals_per_window = 3;  // for each piece

// How the work is cut. A thread has four neighbouring columns (one where memory is not aligned) and `ahead` rows in flight.
template <int threads_, int window_, int ahead_, int resident_>
struct SumShape {
  static constexpr int threads = threads_, window = window_, ahead = ahead_, resident = resident_;
  static_assert(window % ahead == 0 && 2 * window <= threads);
};

// Until the launch before has ended and its writes are there, where this one was launched to overlap with it.
__device__ __forceinline__ void wait_for_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <int width>
__device__ __forceinline__ void store_floats(float* address, const Floats<width>& values) {
  Vector<float, width> part;
#pragma unroll
  for (int k = 0; k < width; ++k) part.lane[k] = values.lane[k];
  store(address, part);
}

template <int width>
__device__ __forceinline__ void add_floats(Floats<width>& sum, const Vector<float, width>& values) {
#pragma unroll
  for (int k = 0; k < width; ++k) sum.lane[k] += values.lane[k];
}

// The id at position `at`, or -1 beyond the ends.
__device__ __forceinline__ std::int32_t id_at(const SortedRows& sorted, std::int64_t at, std::int64_t rows) {
  return at < 0 || at >= rows ? -1 : sorted.ids[at];
}

// Of the threads of one block that adds up: where it is, which columns are its own.
struct Place {
  std::int64_t window;
  int piece, column;
  bool active;  // a column of the matrix
};

// sum += `count` shares, `step` floats apart, in their order. Other blocks wrote them: they are read from L2.
template <int width>
__device__ __forceinline__ void add_shares(Floats<width>& sum, const float* shares, std::int64_t step, int count) {
  using Word = detail::WordOf<Vector<float, width>>;
  constexpr int ahead = 8;
  for (int start = 0; start < count; start += ahead) {
    Vector<float, width> part[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      part[i] = Vector<float, width>{};
      if (start + i < count) {
        const Word word = __ldcg(reinterpret_cast<const Word*>(shares + (start + i) * step));
        part[i] = reinterpret_cast<const Vector<float, width>&>(word);
      }
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (start + i < count) add_floats(sum, part[i]);
  }
}

template <class T, int width>
__device__ __forceinline__ void add_to_table(const Scatter<T>& a, std::int32_t id, int column, Floats<width>& sum) {
  float* target = a.dtable + id * a.dtable_stride + column;
  add_floats(sum, load<width>(target));
  store_floats(target, sum);
}

// Counts this block's arrival; whether it is the last of `expected`, to which all that the others wrote is visible. By a whole block.
__device__ __forceinline__ bool arrives_last(std::int32_t* counter, int expected) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = expected == 1 || atomicAdd(counter, 1) + 1 == expected;
    __threadfence();
  }
  __syncthreads();
  return last;
}

// The windows of a group, a bit each, into which a run of `id` comes from the window before. By a whole warp.
template <int window, class T>
__device__ __forceinline__ unsigned windows_into(const Scatter<T>& a, std::int32_t id, std::int64_t group_first) {
  const std::int64_t at = (group_first + threadIdx.x % 32) * window;
  return __ballot_sync(0xffffffffu, at < a.rows && a.sorted.ids[at] == id && id_at(a.sorted, at - 1, a.rows) == id);
}

// The window in the group where the run begins that comes into the windows `into`, none where it comes into the next group alone.
__device__ __forceinline__ int begins_in(unsigned into) { return into == 0 ? group - 1 : __ffs(static_cast<int>(into)) - 2; }

// After all shares of a long run within one group are summed up, at the place of the first: adds the groups' sums to the table if all are there.
template <int window, class T, int width>
__device__ __forceinline__ void sum_groups(const Scatter<T>& a, std::int32_t id, const Place& place) {
  constexpr std::int64_t group_rows = static_cast<std::int64_t>(group) * window;
  const std::int64_t own = place.window / group;
  const int lane = static_cast<int>(threadIdx.x % 32);
  // Back to the group where the run begins, the nearest into which it does not come; on to the last into which it does.
  std::int64_t first = own, last = own;
  for (;; first -= 32) {
    const std::int64_t at = (first - lane) * group_rows;
    const unsigned not_into = __ballot_sync(0xffffffffu, at <= 0 || a.sorted.ids[at] != id || a.sorted.ids[at - 1] != id);
    if (not_into == 0) continue;
    first -= __ffs(static_cast<int>(not_into)) - 1;
    break;
  }
  for (;;) {
    const std::int64_t at = (last + 1 + lane) * group_rows;
    const int count = __popc(__ballot_sync(0xffffffffu, id_at(a.sorted, at, a.rows) == id));
    last += count;
    if (count < 32) break;
  }
  const std::int64_t begin = first * group + begins_in(windows_into<window>(a, id, first * group));
  std::int32_t* counters = a.arrivals + (2 * static_cast<std::int64_t>(gridDim.x) + begin * a.pieces + place.piece);
  if (!arrives_last(counters, static_cast<int>(last - first) + 1) || !place.active) return;
  const std::int64_t step = 2 * static_cast<std::int64_t>(a.columns);
  const float* shares = a.shares + place.column;
  Floats<width> sum{};
  add_shares(sum, shares + begin * step + a.columns, 0, 1);
  add_shares(sum, shares + (first + 1) * group * step, group * step, static_cast<int>(last - first));
  add_to_table<T, width>(a, id, place.column, sum);
}

// After this block has left its share of a long run of `id`: sums the run's shares within the group if it was the last to leave one.
template <int window, class T, int width>
__device__ __forceinline__ void sum_shares(const Scatter<T>& a, std::int32_t id, const Place& place) {
  const std::int64_t group_first = place.window / group * group, border = (group_first + group) * window;
  const unsigned into = windows_into<window>(a, id, group_first);
  const bool begins = (into & 1u) == 0;
  const std::int64_t begin = group_first + (begins ? begins_in(into) : 0);
  const int others = __popc(into) - (begins ? 0 : 1);
  if (!arrives_last(a.arrivals + (begin * 2 + (begins ? 1 : 0)) * a.pieces + place.piece, others + 1)) return;
  const bool goes_over = id_at(a.sorted, border, a.rows) == id;
  if (place.active && (others > 0 || (begins && !goes_over))) {
    const std::int64_t step = 2 * static_cast<std::int64_t>(a.columns);
    float* share = a.shares + begin * step + (begins ? a.columns : 0) + place.column;
    Floats<width> sum{};
    add_shares(sum, share, 0, 1);
    add_shares(sum, a.shares + (begin + 1) * step + place.column, step, others);
    if (begins && !goes_over)
      add_to_table<T, width>(a, id, place.column, sum);
    else
      store_floats(share, sum);
  }
  if (!begins || goes_over) sum_groups<window, T, width>(a, id, place);
}

// What becomes of the sum at a row: nothing while its run goes on.
enum class Fate : std::uint8_t { goes_on, share_of_coming, share_of_going, table };

// Block (window, piece of the columns), the pieces of one window next to each other. A row of the table is asked for together with the `ahead` rows
// of dout that are in flight.
template <class T, int width, class Shape>
__global__ __launch_bounds__(Shape::threads, Shape::resident) void sum_runs(const Scatter<T> a) {
  constexpr int window = Shape::window, ahead = Shape::ahead;
  using Word = detail::WordOf<Vector<T, width>>;
  __shared__ std::int32_t ids[2 * window], rows[2 * window];
  __shared__ Fate fates[2 * window];
  __shared__ bool has_coming, has_going;  // and not in registers, which the loop needs
  const int thread = static_cast<int>(threadIdx.x), piece = static_cast<int>(blockIdx.x) % a.pieces;
  const std::int64_t number = static_cast<int>(blockIdx.x) / a.pieces, first = number * window;
  wait_for_launch_before();

  // All of these are asked for at once.
  const std::int32_t before = id_at(a.sorted, first - 1, a.rows), far_before = id_at(a.sorted, first - window, a.rows);
  const std::int32_t first_id = a.sorted.ids[first], last_id = id_at(a.sorted, first + window - 1, a.rows);
  const std::int32_t after = id_at(a.sorted, first + window, a.rows), far_after = id_at(a.sorted, first + 2 * window - 1, a.rows);
  std::int32_t id = -1, next_id = -1;
  if (thread < 2 * window) {
    id = id_at(a.sorted, first + thread, a.rows);
    next_id = id_at(a.sorted, first + thread + 1, a.rows);
    if (id >= 0) rows[thread] = a.sorted.rows[first + thread];
  }
  const bool comes_in = before == first_id, goes_out = after >= 0 && after == last_id, whole = first_id == last_id;
  const bool long_in = comes_in && (whole || far_before == before), long_out = goes_out && (whole || far_after == after);
  const bool in_window = thread < window && id >= 0, of_coming = in_window && comes_in && id == first_id;
  const bool of_other = of_coming && !long_in;                                                         // the window before has summed it up
  const bool beyond = thread >= window && thread < 2 * window && goes_out && !long_out && id == last_id;  // of this window's last run
  Fate fate = id != next_id ? Fate::table : Fate::goes_on;
  if (of_coming && (id != next_id || thread == window - 1))
    fate = Fate::share_of_coming;
  else if (in_window && thread == window - 1 && long_out)
    fate = Fate::share_of_going;
  if (thread < 2 * window) {
    ids[thread] = id;
    fates[thread] = fate;
  }
  if (thread == 0) has_coming = long_in, has_going = long_out && !(comes_in && whole);
  const int start = __syncthreads_count(of_other), stop = __syncthreads_count(in_window || beyond);

  const int column = (piece * Shape::threads + thread) * width;
  Floats<width> sum{};
  for (int at = start; column < a.columns && at < stop; at += ahead) {
    Word part[ahead];
    Vector<float, width> old[ahead];
#pragma unroll
    for (int i = 0; i < ahead; ++i)
      if (at + i < stop) part[i] = __ldcs(reinterpret_cast<const Word*>(a.dout + rows[at + i] * a.dout_stride + column));
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      old[i] = Vector<float, width>{};
      if (at + i < stop && fates[at + i] == Fate::table) old[i] = load<width>(a.dtable + ids[at + i] * a.dtable_stride + column);
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) {
      if (at + i >= stop) continue;
      const Floats<width> values = to_floats(reinterpret_cast<const Vector<T, width>&>(part[i]));
#pragma unroll
      for (int k = 0; k < width; ++k) sum.lane[k] += values.lane[k];
      const Fate now = fates[at + i];
      if (now == Fate::goes_on) continue;
      if (now == Fate::table) {
        add_floats(sum, old[i]);
        store_floats(a.dtable + ids[at + i] * a.dtable_stride + column, sum);
      } else {
        store_floats(a.shares + (2 * number + (now == Fate::share_of_going ? 1 : 0)) * a.columns + column, sum);
      }
      sum = Floats<width>{};
    }
  }
  const Place place{number, piece, column, column < a.columns};
  if (has_coming) sum_shares<window, T, width>(a, ids[0], place);
  if (has_going) sum_shares<window, T, width>(a, ids[window - 1], place);
}

}  // namespace tinyllama::cuda
