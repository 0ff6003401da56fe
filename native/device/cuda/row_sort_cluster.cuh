// The sort in one launch of one thread block cluster (sm_90): least significant digit first, a block ranks its share of the rows, puts it in order
// of the digit in its own shared memory, and hands the runs of equal digits on to the blocks where they belong, through distributed shared
// memory. Only the last digit's runs go to global memory. Two barriers of the cluster a digit, a fraction of a microsecond each, stand where
// several launches would.
#pragma once
#include <cooperative_groups.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "native/device/cuda/radix.cuh"
#include "native/device/cuda/row_sort.h"

namespace tinyllama::cuda {

struct ClusterSort {
  std::int32_t *ids_out, *rows_out;
  const std::int32_t* ids;
  std::int32_t* zeros;
  int count, zero_count;
  int bits, step;  // of an id; of a digit here, at most digit_bits
};

struct IdAndRow {
  std::int32_t id, row;
};

template <int threads, int rounds>
struct ClusterMemory {
  IdAndRow arrived[threads * rounds];  // written by all blocks
  IdAndRow ordered[threads * rounds];  // by digit
  std::int32_t seen[threads / 32][digits];  // of each digit in the warp's rounds so far; then in the warps before
  std::int32_t counts[digits];              // read by all blocks
  std::int32_t starts[digits];              // of the digits in `ordered`
  std::int32_t moves[digits];               // from a place in `ordered` to the place among all rows
  std::int32_t warp_totals[2][digits / 32];
};

// The sum of the lower digits' values; thread d has digit d's. By a whole block.
__device__ __forceinline__ std::int32_t sum_of_lower(std::int32_t value, std::int32_t* warp_totals) {
  const int warp = static_cast<int>(threadIdx.x / 32);
  std::int32_t sum = sum_to_lane(value);
  if (warp < digits / 32 && threadIdx.x % 32 == 31) warp_totals[warp] = sum;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < digits / 32; ++w) sum += w < warp ? warp_totals[w] : 0;
  return sum - value;
}

template <int blocks, int threads, int rounds>
__global__ __launch_bounds__(threads, 1) void sort_in_cluster(const ClusterSort a) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  static_assert(threads >= digits);
  constexpr int share = threads * rounds;  // of the rows, to each block
  asm volatile("griddepcontrol.launch_dependents;");  // what follows may take its place on the other multiprocessors; it waits there
  extern __shared__ __align__(16) unsigned char bytes[];
  auto& memory = *reinterpret_cast<ClusterMemory<threads, rounds>*>(bytes);
  const auto cluster = cooperative_groups::this_cluster();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int block = static_cast<int>(blockIdx.x), first = block * share;
  const int own = min(max(a.count - first, 0), share);  // rows of this block, from its first place on
  for (int i = block * threads + thread; i < a.zero_count; i += blocks * threads) a.zeros[i] = 0;

  for (int shift = 0;; shift += a.step) {
    const bool last = shift + a.step >= a.bits;
    const int mask = (1 << a.step) - 1;
    IdAndRow pair[rounds];
    std::int32_t rank[rounds];
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      const int place = (warp * rounds + round) * 32 + lane;
      pair[round] = {0, 0};
      if (place >= own) continue;
      if (shift == 0)
        pair[round] = {a.ids[first + place], first + place};
      else
        pair[round] = memory.arrived[place];
    }
    for (int digit = lane; digit < digits; digit += 32) memory.seen[warp][digit] = 0;
    __syncwarp();
#pragma unroll
    for (int round = 0; round < rounds; ++round)
      rank[round] = rank_of(pair[round].id >> shift & mask, (warp * rounds + round) * 32 + lane < own, memory.seen[warp]);
    __syncthreads();

    std::int32_t total = 0;
    if (thread < digits) {
#pragma unroll 8
      for (int w = 0; w < threads / 32; ++w) {
        const std::int32_t number = memory.seen[w][thread];
        memory.seen[w][thread] = total;
        total += number;
      }
      memory.counts[thread] = total;
    }
    auto counted = cluster.barrier_arrive();
    const std::int32_t start = sum_of_lower(total, memory.warp_totals[0]);
    if (thread < digits) memory.starts[thread] = start;
    __syncthreads();
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      if ((warp * rounds + round) * 32 + lane >= own) continue;
      const int digit = pair[round].id >> shift & mask;
      memory.ordered[memory.starts[digit] + memory.seen[warp][digit] + rank[round]] = pair[round];
    }
    cluster.barrier_wait(std::move(counted));

    std::int32_t all = 0, before = 0;
    if (thread < digits) {
#pragma unroll
      for (int b = 0; b < blocks; ++b) {
        const std::int32_t number = cluster.map_shared_rank(memory.counts, b)[thread];
        all += number;
        before += b < block ? number : 0;
      }
    }
    const std::int32_t lower = sum_of_lower(all, memory.warp_totals[1]);
    if (thread < digits) memory.moves[thread] = lower + before - start;
    __syncthreads();
#pragma unroll
    for (int round = 0; round < rounds; ++round) {
      const int place = round * threads + thread;
      if (place >= own) continue;
      const IdAndRow moved = memory.ordered[place];
      const int to = place + memory.moves[moved.id >> shift & mask];
      if (last) {
        a.ids_out[to] = moved.id;
        a.rows_out[to] = moved.row;
      } else {
        cluster.map_shared_rank(memory.arrived, to / share)[to % share] = moved;
      }
    }
    cluster.sync();  // all pairs have arrived, and nobody reads this block's counts any more
    if (last) return;
  }
#endif
}

inline ClusterSort cluster_sort(const std::int32_t* ids, std::int64_t count, std::int64_t id_end, void* memory, std::int32_t* zeros,
                                std::int64_t zero_count) {
  const int bits = std::max(1, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(id_end - 1))));
  const int passes = (bits + digit_bits - 1) / digit_bits;
  auto* words = static_cast<std::int32_t*>(memory);
  return {.ids_out = words,
          .rows_out = words + count,
          .ids = ids,
          .zeros = zeros,
          .count = static_cast<int>(count),
          .zero_count = static_cast<int>(zero_count),
          .bits = bits,
          .step = (bits + passes - 1) / passes};
}

// Rows that one launch sorts.
template <int blocks, int threads, int rounds>
constexpr std::int64_t cluster_capacity = std::int64_t{blocks} * threads * rounds;

template <int blocks, int threads, int rounds>
void launch_cluster_sort(CudaContext& context, const ClusterSort& arguments) {
  const auto kernel = sort_in_cluster<blocks, threads, rounds>;
  constexpr int bytes = sizeof(ClusterMemory<threads, rounds>);
  CHECK_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  if (blocks > 8) CHECK_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {blocks, 1, 1};
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(blocks);
  launch.blockDim = dim3(threads);
  launch.dynamicSmemBytes = bytes;
  launch.stream = context.stream();
  launch.attrs = &cluster;
  launch.numAttrs = 1;
  CHECK_CUDA(cudaLaunchKernelEx(&launch, kernel, arguments));
}

}  // namespace tinyllama::cuda
