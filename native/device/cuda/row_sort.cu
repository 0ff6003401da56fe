// Least significant digit first radix sort. Where one cluster of blocks holds all rows, it does so in one launch: row_sort_cluster.cuh. Else, 8 bits
// a pass: count the digits of each tile, add up, place; ids of 15 or 16 bits take two passes of two small launches, since each block of the
// placing adds up for itself while the tiles are few. Ranks come from ballots in the order of the rows, so the sort is stable and equal inputs
// take equal paths; nothing depends on which block is first.
#include <utility>

#include "native/device/cuda/radix.cuh"
#include "native/device/cuda/row_sort.h"
#include "native/device/cuda/row_sort_cluster.cuh"
#include "native/device/cuda/vector_access.h"

namespace tinyllama::cuda {
namespace {

constexpr int threads = 256;
constexpr int warps = threads / 32;
constexpr int rounds = 4;                    // of 32 neighbours per warp
constexpr int tile = threads * rounds;       // a warp's share of a tile is contiguous
constexpr unsigned few_tiles = 128;          // every block reads all counts of so many
static_assert(threads == digits, "a thread owns a digit");

// counts[digit][tile], as add_up wants them; by_tile: counts[tile][digit], which neighbouring threads read side by side.
template <bool by_tile>
__global__ __launch_bounds__(threads) void count_digits(std::int32_t* counts, const std::int32_t* ids, std::int64_t count, int shift) {
  __shared__ std::int32_t histogram[digits];
  histogram[threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * tile;
#pragma unroll
  for (int round = 0; round < rounds; ++round) {
    const std::int64_t at = first + round * threads + threadIdx.x;
    if (at < count) atomicAdd(&histogram[digit_of(ids[at], shift)], 1);  // integers: any order gives the same
  }
  __syncthreads();
  const std::int64_t place = by_tile ? static_cast<std::int64_t>(blockIdx.x) * digits + threadIdx.x
                                     : static_cast<std::int64_t>(threadIdx.x) * gridDim.x + blockIdx.x;
  counts[place] = histogram[threadIdx.x];
}

// Exclusive prefix sums in place, by one block.
__global__ __launch_bounds__(1024) void add_up(std::int32_t* counts, std::int64_t length) {
  __shared__ std::int32_t warp_totals[32];
  __shared__ std::int32_t carry;
  if (threadIdx.x == 0) carry = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (std::int64_t first = 0; first < length; first += 1024) {
    const std::int64_t at = first + threadIdx.x;
    const std::int32_t own = at < length ? counts[at] : 0, sum = sum_to_lane(own);
    if (lane == 31) warp_totals[warp] = sum;
    __syncthreads();
    if (warp == 0) warp_totals[lane] = sum_to_lane(warp_totals[lane]);
    __syncthreads();
    const std::int32_t before = carry + (warp > 0 ? warp_totals[warp - 1] : 0);
    if (at < length) counts[at] = before + sum - own;
    __syncthreads();
    if (threadIdx.x == 0) carry += warp_totals[31];
    __syncthreads();
  }
}

// Where the first of this block's rows with the digit threadIdx.x goes, from the counts of all tiles, by tile.
__device__ __forceinline__ std::int32_t start_of_digit(const std::int32_t* counts) {
  __shared__ std::int32_t warp_totals[warps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  std::int32_t before = 0, total = 0;
#pragma unroll 16
  for (unsigned t = 0; t < gridDim.x; ++t) {
    const std::int32_t number = __ldg(counts + t * digits + threadIdx.x);
    total += number;
    before += t < blockIdx.x ? number : 0;
  }
  std::int32_t sum = sum_to_lane(total);
  if (lane == 31) warp_totals[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) sum += warp_totals[w];
  return sum - total + before;
}

// rows_in null: the rows are 0, 1, 2, … counted: `starts` holds the digits' counts by tile still.
template <bool counted>
__global__ __launch_bounds__(threads) void place(std::int32_t* ids_out, std::int32_t* rows_out, const std::int32_t* ids_in,
                                                 const std::int32_t* rows_in, const std::int32_t* starts, std::int64_t count, int shift) {
  __shared__ std::int32_t seen[warps][digits];  // of each digit in the warp's rounds so far; then where the warp's first goes
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int w = 0; w < warps; ++w) seen[w][threadIdx.x] = 0;
  __syncthreads();
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * tile + warp * rounds * 32 + lane;
  std::int32_t id[rounds], rank[rounds];
#pragma unroll
  for (int round = 0; round < rounds; ++round) {
    const std::int64_t at = first + round * 32;
    id[round] = at < count ? ids_in[at] : -1;
  }
#pragma unroll
  for (int round = 0; round < rounds; ++round) rank[round] = rank_of(digit_of(id[round], shift), first + round * 32 < count, seen[warp]);
  __syncthreads();
  std::int32_t start = counted ? start_of_digit(starts) : starts[static_cast<std::int64_t>(threadIdx.x) * gridDim.x + blockIdx.x];
  for (int w = 0; w < warps; ++w) {
    const std::int32_t number = seen[w][threadIdx.x];
    seen[w][threadIdx.x] = start;
    start += number;
  }
  __syncthreads();
#pragma unroll
  for (int round = 0; round < rounds; ++round) {
    const std::int64_t at = first + round * 32;
    if (at >= count) continue;
    const std::int32_t to = seen[warp][digit_of(id[round], shift)] + rank[round];
    ids_out[to] = id[round];
    rows_out[to] = rows_in ? rows_in[at] : static_cast<std::int32_t>(at);
  }
}

constexpr int cluster_blocks = 16, cluster_threads = 512;  // the fastest of those that were measured

bool cluster_sort_available(const CudaContext& context) {
  if (context.properties().major != 9) return false;
  // Where the build has no code for sm_90, the kernel is an empty shell, told by its few registers.
  static const bool compiled = [] {
    cudaFuncAttributes attributes{};
    CHECK_CUDA(cudaFuncGetAttributes(&attributes, sort_in_cluster<cluster_blocks, cluster_threads, 4>));
    return attributes.numRegs >= 32;
  }();
  return compiled;
}

}  // namespace

std::size_t row_sort_bytes(std::int64_t count) {
  return static_cast<std::size_t>(4 * count + static_cast<std::int64_t>(blocks_for(count, tile)) * digits) * sizeof(std::int32_t);
}

SortedRows sort_rows_by_tiles(CudaContext& context, const std::int32_t* ids, std::int64_t count, std::int64_t id_end, void* memory,
                              std::int32_t* zeros, std::int64_t zero_count) {
  require(count <= 0x7fffffff, "sort_rows: more rows than 32 bits count");
  if (zero_count > 0) CHECK_CUDA(cudaMemsetAsync(zeros, 0, static_cast<std::size_t>(zero_count) * sizeof(std::int32_t), context.stream()));
  auto* words = static_cast<std::int32_t*>(memory);
  std::int32_t *ids_out = words, *rows_out = words + count, *ids_other = words + 2 * count, *rows_other = words + 3 * count;
  std::int32_t* counts = words + 4 * count;
  const unsigned tiles = blocks_for(count, tile);
  const std::int32_t *ids_in = ids, *rows_in = nullptr;
  int shift = 0;
  do {
    if (tiles <= few_tiles) {
      count_digits<true><<<tiles, threads, 0, context.stream()>>>(counts, ids_in, count, shift);
      CHECK_LAUNCH("sort_rows");
      place<true><<<tiles, threads, 0, context.stream()>>>(ids_out, rows_out, ids_in, rows_in, counts, count, shift);
    } else {
      count_digits<false><<<tiles, threads, 0, context.stream()>>>(counts, ids_in, count, shift);
      CHECK_LAUNCH("sort_rows");
      add_up<<<1, 1024, 0, context.stream()>>>(counts, static_cast<std::int64_t>(tiles) * digits);
      CHECK_LAUNCH("sort_rows");
      place<false><<<tiles, threads, 0, context.stream()>>>(ids_out, rows_out, ids_in, rows_in, counts, count, shift);
    }
    CHECK_LAUNCH("sort_rows");
    ids_in = ids_out;
    rows_in = rows_out;
    std::swap(ids_out, ids_other);
    std::swap(rows_out, rows_other);
    shift += digit_bits;
  } while (shift < 31 && (id_end - 1) >> shift > 0);
  return {ids_in, rows_in};
}

SortedRows sort_rows(CudaContext& context, const std::int32_t* ids, std::int64_t count, std::int64_t id_end, void* memory, std::int32_t* zeros,
                     std::int64_t zero_count) {
  const bool fits = count <= cluster_capacity<cluster_blocks, cluster_threads, 8> && zero_count <= 0x7fffffff;
  if (!fits || !cluster_sort_available(context)) return sort_rows_by_tiles(context, ids, count, id_end, memory, zeros, zero_count);
  const ClusterSort arguments = cluster_sort(ids, count, id_end, memory, zeros, zero_count);
  if (count <= cluster_capacity<cluster_blocks, cluster_threads, 4>)
    launch_cluster_sort<cluster_blocks, cluster_threads, 4>(context, arguments);
  else
    launch_cluster_sort<cluster_blocks, cluster_threads, 8>(context, arguments);
  return {arguments.ids_out, arguments.rows_out, true};
}

}  // namespace tinyllama::cuda
