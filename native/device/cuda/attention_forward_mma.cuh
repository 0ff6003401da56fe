// FlashAttention-2's forward on mma.sync. One block: one query head, WARPS * MT * 16 queries; a warp owns MT * 16 of them and walks down the key
// tiles with an online softmax. Keys and values arrive by cp.async, `STAGES` tiles deep. Blocks of the longest rows start first; the heads
// of one group follow each other, so that their keys and values are in L2.
// Bytes moved: q once, out once, and (from L2) keys and values once per query tile.
#pragma once
#include "native/device/cuda/attention_warp.cuh"

namespace tinyllama::cuda {

struct ForwardArguments {
  const __nv_bfloat16* qkv;
  __nv_bfloat16* out;
  float* lse;
  const std::int32_t* first_keys;  // may be null
  int qkv_stride, out_stride;
  int length, heads, kv_heads;
  float scale;  // of the scores
};

template <int S, int WARPS, int MT, int KT, int STAGES>
struct ForwardLayout {
  static constexpr int query_rows = WARPS * MT * 16;
  static constexpr int query_bytes = query_rows * S * 2, tile_bytes = KT * S * 2;
  static constexpr int bytes = query_bytes + STAGES * 2 * tile_bytes;
};

constexpr float minus_infinity = -__builtin_huge_valf(), log2_e = 1.4426950408889634f;

// Online softmax of one warp's scores: replaces them by exp2(score·c - maximum·c), rescales the running sums and the output.
template <int MT, int N, int D>
__device__ __forceinline__ void online_softmax(float (&scores)[MT][N][4], float (&out)[MT][D][4], float (&maxima)[MT][2], float (&sums)[MT][2],
                                               float c) {
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float top = maxima[m][r];
#pragma unroll
      for (int n = 0; n < N; ++n) top = fmaxf(top, fmaxf(scores[m][n][2 * r], scores[m][n][2 * r + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float offset = top == minus_infinity ? 0.f : top * c;  // a row without a key so far: no infinity minus infinity
      const float rescale = exp2_approximate(fmaf(maxima[m][r], c, -offset));
      maxima[m][r] = top;
      float sum = 0.f;
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          scores[m][n][e] = exp2_approximate(fmaf(scores[m][n][e], c, -offset));
          sum += scores[m][n][e];
        }
      sums[m][r] = fmaf(sums[m][r], rescale, sum);
#pragma unroll
      for (int d = 0; d < D; ++d) out[m][d][2 * r] *= rescale, out[m][d][2 * r + 1] *= rescale;
    }
}

// The left operand's fragment of depth step k from the accumulators of a product: its columns become the depth.
template <int N>
__device__ __forceinline__ void left_from_sums(std::uint32_t (&a)[4], const float (&sums)[N][4], int k) {
  a[0] = pack_bf16(sums[2 * k][0], sums[2 * k][1]);
  a[1] = pack_bf16(sums[2 * k][2], sums[2 * k][3]);
  a[2] = pack_bf16(sums[2 * k + 1][0], sums[2 * k + 1][1]);
  a[3] = pack_bf16(sums[2 * k + 1][2], sums[2 * k + 1][3]);
}

template <int S, int WARPS, int MT, int KT, int STAGES, int BLOCKS>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS) attention_forward_mma(const ForwardArguments arguments) {
  using Layout = ForwardLayout<S, WARPS, MT, KT, STAGES>;
  constexpr int threads = WARPS * 32, depth_steps = S / 16, N = KT / 8, D = S / 8;
  int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int length = arguments.length, heads = arguments.heads, stride = arguments.qkv_stride;
  const int batch = static_cast<int>(blockIdx.x) / heads, head = static_cast<int>(blockIdx.x) % heads;
  const int group = head / (heads / arguments.kv_heads);
  const int query_first = static_cast<int>(gridDim.y - 1 - blockIdx.y) * Layout::query_rows;
  const std::int64_t sequence = static_cast<std::int64_t>(batch) * length;
  const __nv_bfloat16* rows = arguments.qkv + sequence * stride;
  const __nv_bfloat16* queries = rows + head * S;
  const __nv_bfloat16* keys = rows + (heads + group) * S;
  const __nv_bfloat16* values = keys + arguments.kv_heads * S;
  const std::uint32_t query_tile = shared_address(dynamic_shared()), stages = query_tile + Layout::query_bytes;

  const int warp_first = query_first + warp * MT * 16;
  const auto first_key_of = [&](int row) { return arguments.first_keys[sequence + min(row, length - 1)]; };
  int lowest = 0, highest = 0;  // bounds of the first keys of the block's rows
  if (arguments.first_keys != nullptr) {
    int* bounds = reinterpret_cast<int*>(dynamic_shared());
    lowest = length;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int first_key = first_key_of(warp_first + m * 16 + r * 8 + lane / 4);
        lowest = min(lowest, first_key), highest = max(highest, first_key);
      }
    lowest = __reduce_min_sync(0xffffffffu, lowest), highest = __reduce_max_sync(0xffffffffu, highest);
    if (lane == 0) bounds[warp] = lowest, bounds[WARPS + warp] = highest;
    __syncthreads();
#pragma unroll
    for (int w = 0; w < WARPS; ++w) lowest = min(lowest, bounds[w]), highest = max(highest, bounds[WARPS + w]);
    __syncthreads();
  }
  const int tile_last = (min(query_first + Layout::query_rows, length) - 1) / KT, tile_first = lowest / KT;
  const int tiles = tile_last - tile_first + 1;

  // Tile `step` of the walk, from the last key tile down.
  const auto load_stage = [&](int step) {
    if (step < tiles) {
      const std::uint32_t stage = stages + static_cast<std::uint32_t>(step % STAGES) * 2 * Layout::tile_bytes;
      load_tile<KT, S, threads>(stage, keys, stride, (tile_last - step) * KT, length);
      load_tile<KT, S, threads>(stage + Layout::tile_bytes, values, stride, (tile_last - step) * KT, length);
    }
    commit_copies();
  };
  load_tile<Layout::query_rows, S, threads>(query_tile, queries, stride, query_first, length);
#pragma unroll
  for (int step = 0; step < STAGES - 1; ++step) load_stage(step);

  std::uint32_t query[MT][depth_steps][4];
  float out[MT][D][4] = {}, maxima[MT][2], sums[MT][2] = {};
#pragma unroll
  for (int m = 0; m < MT; ++m) maxima[m][0] = maxima[m][1] = minus_infinity;
  const float c = arguments.scale * log2_e;

  for (int step = 0; step < tiles; ++step) {
    recompute(lane);
    wait_copies<STAGES - 2>();
    __syncthreads();
    load_stage(step + STAGES - 1);
    if (step == 0) {
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int k = 0; k < depth_steps; ++k)
          load_matrices(query[m][k], fragment_address<S>(left_start<S>(query_tile, lane), warp * MT * 16 + m * 16, 2 * k));
    }
    const int key_first = (tile_last - step) * KT;
    if (key_first > warp_first + MT * 16 - 1) continue;  // later than all of this warp's queries
    const std::uint32_t key_tile = stages + static_cast<std::uint32_t>(step % STAGES) * 2 * Layout::tile_bytes;
    const std::uint32_t key_start = right_start<S>(key_tile, lane);
    const std::uint32_t value_start = right_transposed_start<S>(key_tile + Layout::tile_bytes, lane);

    float scores[MT][N][4] = {};
#pragma unroll
    for (int k = 0; k < depth_steps; ++k)
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        std::uint32_t b[4];
        load_matrices(b, fragment_address<S>(key_start, n * 8, 2 * k));
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          multiply_add(scores[m][n], query[m][k], b[0], b[1]);
          multiply_add(scores[m][n + 1], query[m][k], b[2], b[3]);
        }
      }
    if (key_first + KT - 1 > warp_first || highest > key_first) {
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = warp_first + m * 16 + lane / 4 + r * 8, first_key = highest > key_first ? first_key_of(row) : 0;
#pragma unroll
          for (int n = 0; n < N; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int key = key_first + n * 8 + (lane % 4) * 2 + e;
              if (key > row || key < first_key) scores[m][n][2 * r + e] = minus_infinity;
            }
        }
    }
    online_softmax(scores, out, maxima, sums, c);
#pragma unroll
    for (int k = 0; k < KT / 16; ++k) {
      std::uint32_t a[MT][4];
#pragma unroll
      for (int m = 0; m < MT; ++m) left_from_sums(a[m], scores[m], k);
#pragma unroll
      for (int d = 0; d < D; d += 2) {
        std::uint32_t b[4];
        load_matrices_transposed(b, fragment_address<S>(value_start, k * 16, d));
#pragma unroll
        for (int m = 0; m < MT; ++m) {
          multiply_add(out[m][d], a[m], b[0], b[1]);
          multiply_add(out[m][d + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
  wait_copies<0>();

  // Out through this warp's own rows of the query tile, so that it leaves in 16-byte pieces.
  float* lse = arguments.lse + (static_cast<std::int64_t>(batch) * heads + head) * length;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = sums[m][r];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const float inverse = sum > 0.f ? 1.f / sum : 0.f;
      const int local = m * 16 + r * 8 + lane / 4, row = warp_first + local;
      if (lane % 4 == 0 && row < length) lse[row] = maxima[m][r] * arguments.scale + logf(sum);
#pragma unroll
      for (int d = 0; d < D; ++d)
        store_shared(query_tile + swizzled<S>(warp * MT * 16 + local, d) + static_cast<std::uint32_t>(lane % 4) * 4,
                     pack_bf16(out[m][d][2 * r] * inverse, out[m][d][2 * r + 1] * inverse));
    }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < MT * 16 * D / 32; ++i) {
    const int index = i * 32 + lane, local = index / D, chunk = index % D, row = warp_first + local;
    const uint4 piece = load_shared_16(query_tile + swizzled<S>(warp * MT * 16 + local, chunk));
    if (row < length) *reinterpret_cast<uint4*>(arguments.out + (sequence + row) * arguments.out_stride + head * S + chunk * 8) = piece;
  }
}

}  // namespace tinyllama::cuda
