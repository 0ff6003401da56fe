// FlashAttention-2's backward on mma.sync, five products per tile pair, deterministic.
//
// One block: one key tile of one group (WARPS * MT * 16 keys). It walks over the query tiles that see the keys, from the last one up, and for each
// over the group's query heads, so that dK and dV stay in registers until the end. Scores are computed transposed (keys along the
// accumulator's rows): P and dS are then the left operands of dV += Pᵀ·dO and dK += dSᵀ·Q as they lie in registers; only dS goes
// through shared memory, for dQ += dS·K.
//
// dQ is a sum over key tiles, i.e. over blocks. It is kept in fp32 in global memory, and blocks add to it in ascending order of their key tiles: a
// counter per query tile, head and warp says whose turn it is. All blocks walk the query tiles in the same order, so a block that
// started a little later than its predecessor never waits. Blocks take their numbers from a counter when they start: a
// predecessor always runs or has run, so nobody waits for ever. The last block of a tile writes dQ as bf16.
//
// Bytes moved: queries and dO once per key tile and dQ read and written once per key tile (both mostly in L2, because the blocks of a group walk
// together), keys and values once, dK and dV once.
#pragma once
#include "native/device/cuda/attention_forward_mma.cuh"

namespace tinyllama::cuda {

struct BackwardArguments {
  const __nv_bfloat16 *qkv, *dout;
  __nv_bfloat16* dqkv;
  const float* statistics;         // log2 of the softmax sum, and rowsum(dO·O); laid out as attention_backward_rows says
  const std::int32_t* first_keys;  // may be null
  const int2* first_key_bounds;    // lowest and highest first key of each sequence's query tiles; null with first_keys
  float* dq_sums;                  // query tiles of QT * S values, (B, H, tiles)
  int* turns;                      // zeros: the counter of started blocks, then (B, H, tiles, WARPS)
  int qkv_stride, dout_stride, dqkv_stride;
  int batch, length, heads, kv_heads;
  int wave;  // groups whose key tiles are started together, longest first
  float scale;
};

template <int S, int WARPS, int MT, int QT>
struct BackwardLayout {
  static constexpr int key_rows = WARPS * MT * 16;
  static constexpr int key_bytes = key_rows * S * 2, query_bytes = QT * S * 2, dscore_bytes = key_rows * QT * 2;
  static constexpr int row_bytes = (3 * QT * 4 + 255) / 256 * 256;  // lse2, delta and first keys of a query tile
  static constexpr int stage_bytes = 2 * query_bytes + row_bytes;
  static constexpr int keys = 0, values = key_bytes, dscores = 2 * key_bytes, stages = dscores + dscore_bytes;
  static constexpr int bytes = stages + 2 * stage_bytes;
};

// One depth step of sums(MT*16 x N*8) += left · rightᵀ, both with depth along the rows of tiles of S columns.
template <int S, int MT, int N>
__device__ __forceinline__ void multiply_step(float (&sums)[MT][N][4], std::uint32_t left_start, std::uint32_t right_start, int k) {
  std::uint32_t a[MT][4];
#pragma unroll
  for (int m = 0; m < MT; ++m) load_matrices(a[m], fragment_address<S>(left_start, m * 16, 2 * k));
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    std::uint32_t b[4];
    load_matrices(b, fragment_address<S>(right_start, n * 8, 2 * k));
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      multiply_add(sums[m][n], a[m], b[0], b[1]);
      multiply_add(sums[m][n + 1], a[m], b[2], b[3]);
    }
  }
}

// Shared memory of a block on the GPU that is compiled for. What needs more has no code there.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 890)
constexpr int shared_memory_of_block = 99 * 1024;
#else
constexpr int shared_memory_of_block = 227 * 1024;
#endif

template <int S, int WARPS, int MT, int QT, int QC, int BLOCKS>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS) attention_backward_mma(const BackwardArguments arguments) {
  using Layout = BackwardLayout<S, WARPS, MT, QT>;
  if constexpr (Layout::bytes > shared_memory_of_block) return;
  constexpr int threads = WARPS * 32, depth_steps = S / 16, D = S / 8;
  constexpr int KT = Layout::key_rows, N = QC / 8;  // a warp takes the queries in chunks of QC
  static_assert(QT % (MT * 16) == 0 && KT % QT == 0 && QT % QC == 0);
  int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int length = arguments.length, heads = arguments.heads, kv_heads = arguments.kv_heads, group_heads = heads / kv_heads;
  const int stride = arguments.qkv_stride;
  unsigned char* shared = dynamic_shared();
  const std::uint32_t base = shared_address(shared);

  // Which block this is.
  const int key_tiles = (length + KT - 1) / KT, query_tiles = (length + QT - 1) / QT, groups = arguments.batch * kv_heads;
  if (threadIdx.x == 0) *reinterpret_cast<int*>(shared) = atomicAdd(arguments.turns, 1);
  __syncthreads();
  const int ticket = *reinterpret_cast<const int*>(shared);
  __syncthreads();
  const int wave_first = ticket / (arguments.wave * key_tiles) * arguments.wave, wave_size = min(arguments.wave, groups - wave_first);
  const int in_wave = ticket % (arguments.wave * key_tiles);
  const int key_tile = in_wave / wave_size, batch_group = wave_first + in_wave % wave_size;
  const int batch = batch_group / kv_heads, group = batch_group % kv_heads, head_first = group * group_heads;
  const int key_first = key_tile * KT, warp_first = key_first + warp * MT * 16;

  const std::int64_t sequence = static_cast<std::int64_t>(batch) * length;
  const __nv_bfloat16* rows = arguments.qkv + sequence * stride;
  const __nv_bfloat16* queries = rows + head_first * S;
  const __nv_bfloat16* douts = arguments.dout + sequence * arguments.dout_stride + head_first * S;
  const std::int64_t first_head = static_cast<std::int64_t>(batch) * heads + head_first;

  const int2* bounds = arguments.first_key_bounds;
  if (bounds != nullptr) bounds += static_cast<std::int64_t>(batch) * query_tiles;

  const auto load_stage = [&](int stage_index, int tile, int head) {
    if (tile * QT >= key_first) {
      const std::uint32_t stage = base + Layout::stages + static_cast<std::uint32_t>(stage_index) * Layout::stage_bytes;
      const int first = tile * QT;
      load_tile<QT, S, threads>(stage, queries + head * S, stride, first, length);
      load_tile<QT, S, threads>(stage + Layout::query_bytes, douts + head * S, arguments.dout_stride, first, length);
      const float* statistics = arguments.statistics + ((first_head + head) * length + first) * 2;
#pragma unroll
      for (int i = static_cast<int>(threadIdx.x); i < 2 * QT; i += threads) {
        const bool valid = first + i % QT < length;
        copy_async_4(stage + 2 * Layout::query_bytes + static_cast<std::uint32_t>(i) * 4, statistics + (valid ? i % QT * 2 + i / QT : 0), valid);
      }
      if (bounds != nullptr) {
        const std::int32_t* first_keys = arguments.first_keys + sequence + first;
        for (int i = static_cast<int>(threadIdx.x); i < QT; i += threads)
          copy_async_4(stage + 2 * Layout::query_bytes + static_cast<std::uint32_t>(2 * QT + i) * 4, first_keys + (first + i < length ? i : 0),
                       first + i < length);
      }
    }
    commit_copies();
  };
  // The next query tile from `tile` down that sees one of the keys; before the block's own keys' tile where there is none.
  const auto seeing = [&](int tile) {
    if (bounds != nullptr)
      while (tile * QT >= key_first && bounds[tile].x >= key_first + KT) --tile;
    return tile;
  };

  int tile = seeing(query_tiles - 1), head = 0;
  const __nv_bfloat16* keys = rows + (heads + group) * S;
  load_tile<KT, S, threads>(base + Layout::keys, keys, stride, key_first, length);
  load_tile<KT, S, threads>(base + Layout::values, keys + kv_heads * S, stride, key_first, length);
  load_stage(0, tile, head);

  float dkeys[MT][D][4] = {}, dvalues[MT][D][4] = {};
  const float c = arguments.scale * log2_e;
  for (int stage_index = 0; tile * QT >= key_first; stage_index ^= 1) {
    recompute(lane);
    int next_tile = tile, next_head = head + 1;
    if (next_head == group_heads) next_head = 0, next_tile = seeing(tile - 1);
    wait_copies<0>();
    __syncthreads();
    load_stage(stage_index ^ 1, next_tile, next_head);
    const std::uint32_t query_tile = base + Layout::stages + static_cast<std::uint32_t>(stage_index) * Layout::stage_bytes;
    const float* row_lse2 = reinterpret_cast<const float*>(shared + Layout::stages + stage_index * Layout::stage_bytes + 2 * Layout::query_bytes);
    const float* row_delta = row_lse2 + QT;
    const int* row_first_keys = reinterpret_cast<const int*>(row_delta + QT);
    const int query_first = tile * QT;
    const bool masked = key_first + KT - 1 > query_first || (bounds != nullptr && bounds[tile].y > key_first);

    if (warp_first < query_first + QT) {
      const std::uint32_t key_start = left_start<S>(base + Layout::keys + static_cast<std::uint32_t>(warp * MT * 16 * S * 2), lane);
      const std::uint32_t dscore_start = sums_start<QT>(base + Layout::dscores + static_cast<std::uint32_t>(warp * MT * 16 * QT * 2), lane);
#pragma unroll 1
      for (int chunk = 0; chunk < QT / QC; ++chunk) {
        const std::uint32_t right = right_start<S>(query_tile + static_cast<std::uint32_t>(chunk * QC * S * 2), lane);
        const std::uint32_t right_transposed = right_transposed_start<S>(query_tile + static_cast<std::uint32_t>(chunk * QC * S * 2), lane);
        // Pᵀ, rounded to bf16 as dV's left operand: two queries to a register.
        std::uint32_t p[MT][QC / 16][4];
        {
          float scores[MT][N][4] = {};
#pragma unroll 2  // all at once costs more registers than there are
          for (int k = 0; k < depth_steps; ++k) multiply_step<S>(scores, key_start, right, k);
#pragma unroll
          for (int n = 0; n < N; ++n) {
            const int column = chunk * QC + n * 8 + (lane % 4) * 2;
            const float2 lse2 = *reinterpret_cast<const float2*>(row_lse2 + column);
#pragma unroll
            for (int m = 0; m < MT; ++m)
#pragma unroll
              for (int e = 0; e < 4; ++e) scores[m][n][e] = exp2_approximate(fmaf(scores[m][n][e], c, -(e % 2 == 0 ? lse2.x : lse2.y)));
          }
          if (masked) {
#pragma unroll
            for (int n = 0; n < N; ++n) {
              const int column = chunk * QC + n * 8 + (lane % 4) * 2;
              const int2 first = bounds == nullptr ? make_int2(0, 0) : *reinterpret_cast<const int2*>(row_first_keys + column);
#pragma unroll
              for (int m = 0; m < MT; ++m)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                  const int key = warp_first + m * 16 + lane / 4 + (e / 2) * 8;
                  if (key > query_first + column + e % 2 || key < (e % 2 == 0 ? first.x : first.y)) scores[m][n][e] = 0.f;
                }
            }
          }
#pragma unroll
          for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int k = 0; k < QC / 16; ++k) left_from_sums(p[m][k], scores[m], k);
        }
#pragma unroll
        for (int k = 0; k < QC / 16; ++k)
#pragma unroll
          for (int d = 0; d < D; d += 2) {
            std::uint32_t b[4];
            load_matrices_transposed(b, fragment_address<S>(right_transposed, k * 16, d) + Layout::query_bytes);
#pragma unroll
            for (int m = 0; m < MT; ++m) {
              multiply_add(dvalues[m][d], p[m][k], b[0], b[1]);
              multiply_add(dvalues[m][d + 1], p[m][k], b[2], b[3]);
            }
          }
        // dSᵀ = Pᵀ (dPᵀ - delta), rounded in P's place: dK's left operand, and to shared memory with keys along the rows.
        {
          float dp[MT][N][4] = {};
#pragma unroll 2  // all at once costs more registers than there are
          for (int k = 0; k < depth_steps; ++k) multiply_step<S>(dp, key_start + Layout::values, right + Layout::query_bytes, k);
#pragma unroll
          for (int n = 0; n < N; ++n) {
            const float2 delta = *reinterpret_cast<const float2*>(row_delta + chunk * QC + n * 8 + (lane % 4) * 2);
#pragma unroll
            for (int m = 0; m < MT; ++m)
#pragma unroll
              for (int r = 0; r < 2; ++r) {
                std::uint32_t& pair = p[m][n / 2][n % 2 * 2 + r];
                pair = pack_bf16(low_bf16(pair) * (dp[m][n][2 * r] - delta.x), high_bf16(pair) * (dp[m][n][2 * r + 1] - delta.y));
              }
          }
        }
#pragma unroll
        for (int k = 0; k < QC / 16; ++k)
#pragma unroll
          for (int m = 0; m < MT; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i)
              store_shared(fragment_address<QT>(dscore_start, m * 16 + (i % 2) * 8, chunk * (QC / 8) + 2 * k + i / 2), p[m][k][i]);
#pragma unroll
        for (int k = 0; k < QC / 16; ++k)
#pragma unroll
          for (int d = 0; d < D; d += 2) {
            std::uint32_t b[4];
            load_matrices_transposed(b, fragment_address<S>(right_transposed, k * 16, d));
#pragma unroll
            for (int m = 0; m < MT; ++m) {
              multiply_add(dkeys[m][d], p[m][k], b[0], b[1]);
              multiply_add(dkeys[m][d + 1], p[m][k], b[2], b[3]);
            }
          }
      }
    }
    __syncthreads();

    // dQ of this tile: warps share it QW queries by DW columns.
    constexpr int query_warps = QT / 16 >= 2 * WARPS ? WARPS : 2, column_warps = WARPS / query_warps;
    constexpr int QM = QT / query_warps / 16, DW = S / column_warps, DN = DW / 8;
    static_assert(QM >= 1 && DN >= 2 && DN % 2 == 0);
    const int warp_query = warp % query_warps * QM * 16, warp_column = warp / query_warps * DW;
    const std::int64_t tile_index = (first_head + head) * query_tiles + tile;
    float* sums = arguments.dq_sums + tile_index * (QT * S) + warp * (QM * DN * 128) + lane * 4;
    int* turn = arguments.turns + 1 + tile_index * WARPS + warp;
    const int tile_first = bounds == nullptr ? 0 : bounds[tile].x / KT, tile_last = query_first / KT;

    const std::uint32_t dscores = left_transposed_start<QT>(base + Layout::dscores, lane);
    const std::uint32_t keys_transposed = right_transposed_start<S>(base + Layout::keys, lane);
    float dq[QM][DN][4] = {};
    const int depth = min(KT, query_first + QT - key_first) / 16;  // later keys are masked for the whole tile
#pragma unroll 2
    for (int k = 0; k < depth; ++k) {
      std::uint32_t a[QM][4];
#pragma unroll
      for (int m = 0; m < QM; ++m)
        load_matrices_transposed(a[m], fragment_address<QT>(dscores + static_cast<std::uint32_t>(k * 16 * QT * 2), 0, warp_query / 8 + m * 2));
#pragma unroll
      for (int d = 0; d < DN; d += 2) {
        std::uint32_t b[4];
        load_matrices_transposed(b, fragment_address<S>(keys_transposed + static_cast<std::uint32_t>(k * 16 * S * 2), 0, warp_column / 8 + d));
#pragma unroll
        for (int m = 0; m < QM; ++m) {
          multiply_add(dq[m][d], a[m], b[0], b[1]);
          multiply_add(dq[m][d + 1], a[m], b[2], b[3]);
        }
      }
    }
    if (key_tile > tile_first) {
      if (lane == 0)
        while (load_acquire(turn) < key_tile - tile_first) {
        }
      __syncwarp();
#pragma unroll
      for (int m = 0; m < QM; ++m)
#pragma unroll
        for (int d = 0; d < DN; ++d) {
          const float4 sum = __ldcg(reinterpret_cast<const float4*>(sums + (m * DN + d) * 128));
          dq[m][d][0] += sum.x, dq[m][d][1] += sum.y, dq[m][d][2] += sum.z, dq[m][d][3] += sum.w;
        }
    }
    if (key_tile < tile_last) {
#pragma unroll
      for (int m = 0; m < QM; ++m)
#pragma unroll
        for (int d = 0; d < DN; ++d)
          __stcg(reinterpret_cast<float4*>(sums + (m * DN + d) * 128), make_float4(dq[m][d][0], dq[m][d][1], dq[m][d][2], dq[m][d][3]));
      __syncwarp();
      if (lane == 0) store_release(turn, key_tile - tile_first + 1);
    } else {
#pragma unroll
      for (int m = 0; m < QM; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = query_first + warp_query + m * 16 + r * 8 + lane / 4;
          if (row >= length) continue;
          __nv_bfloat16* target =
              arguments.dqkv + (sequence + row) * arguments.dqkv_stride + (head_first + head) * S + warp_column + (lane % 4) * 2;
#pragma unroll
          for (int d = 0; d < DN; ++d)
            *reinterpret_cast<std::uint32_t*>(target + d * 8) =
                pack_bf16(dq[m][d][2 * r] * arguments.scale, dq[m][d][2 * r + 1] * arguments.scale);
        }
    }
    tile = next_tile, head = next_head;
  }
  wait_copies<0>();

#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = warp_first + m * 16 + r * 8 + lane / 4;
      if (row >= length) continue;
      __nv_bfloat16* target = arguments.dqkv + (sequence + row) * arguments.dqkv_stride + (heads + group) * S + (lane % 4) * 2;
#pragma unroll
      for (int d = 0; d < D; ++d) {
        *reinterpret_cast<std::uint32_t*>(target + d * 8) =
            pack_bf16(dkeys[m][d][2 * r] * arguments.scale, dkeys[m][d][2 * r + 1] * arguments.scale);
        *reinterpret_cast<std::uint32_t*>(target + kv_heads * S + d * 8) = pack_bf16(dvalues[m][d][2 * r], dvalues[m][d][2 * r + 1]);
      }
    }
}

// What the backward needs of each row: delta = rowsum(dO·O) and the sums' log2. S / 8 lanes per row of a head, 16-byte loads.
// TILE 0: statistics (B, H, T, 2). Otherwise (B, H, tiles, 2, TILE), with zeros behind the end. Bytes moved: dO and O once.
struct RowArguments {
  const __nv_bfloat16 *out, *dout;
  const float* lse;
  float* statistics;
  int out_stride, dout_stride, batch, length, heads;
};

// Rows of a sequence for which there are statistics.
template <int TILE>
__host__ __device__ constexpr int padded_length(int length) {
  if constexpr (TILE == 0) return length;
  else return (length + TILE - 1) / TILE * TILE;
}

template <int S, int TILE = 0>
__global__ void __launch_bounds__(256) attention_backward_rows(const RowArguments arguments) {
  constexpr int lanes = S / 8;
  const int length = arguments.length, heads = arguments.heads, rows = padded_length<TILE>(length);
  const std::int64_t unit = (static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x) / lanes;  // (sequence, row, head)
  const int head = static_cast<int>(unit % heads), lane = static_cast<int>(threadIdx.x) % lanes;
  const int batch = static_cast<int>(unit / heads / rows), local = static_cast<int>(unit / heads % rows);
  const bool valid = batch < arguments.batch && local < length;
  float sum = 0.f;
  if (valid) {
    const std::int64_t row = static_cast<std::int64_t>(batch) * length + local;
    const uint4 a = *reinterpret_cast<const uint4*>(arguments.out + row * arguments.out_stride + head * S + lane * 8);
    const uint4 b = *reinterpret_cast<const uint4*>(arguments.dout + row * arguments.dout_stride + head * S + lane * 8);
    const std::uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum = fmaf(__uint_as_float(left[i] << 16), __uint_as_float(right[i] << 16), sum);
      sum = fmaf(__uint_as_float(left[i] & 0xffff0000u), __uint_as_float(right[i] & 0xffff0000u), sum);
    }
  }
#pragma unroll
  for (int offset = 1; offset < lanes; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (batch >= arguments.batch || lane != 0) return;
  const std::int64_t column = static_cast<std::int64_t>(batch) * heads + head;
  const float lse2 = valid ? arguments.lse[column * length + local] * log2_e : 0.f;
  if constexpr (TILE == 0) {
    reinterpret_cast<float2*>(arguments.statistics)[column * length + local] = make_float2(lse2, sum);
  } else {
    float* target = arguments.statistics + (column * (rows / TILE) + local / TILE) * (2 * TILE) + local % TILE;
    target[0] = lse2, target[TILE] = sum;
  }
}

// Lowest and highest first key of each query tile; one warp per tile.
template <int QT>
__global__ void attention_first_key_bounds(int2* bounds, const std::int32_t* first_keys, int length) {
  const int tile = static_cast<int>(blockIdx.x), batch = static_cast<int>(blockIdx.y);
  int lowest = length, highest = 0;
  for (int row = tile * QT + static_cast<int>(threadIdx.x); row < min(length, (tile + 1) * QT); row += 32) {
    const int key = first_keys[static_cast<std::int64_t>(batch) * length + row];
    lowest = min(lowest, key), highest = max(highest, key);
  }
  lowest = __reduce_min_sync(0xffffffffu, lowest), highest = __reduce_max_sync(0xffffffffu, highest);
  if (threadIdx.x == 0) bounds[static_cast<std::int64_t>(batch) * gridDim.x + tile] = make_int2(lowest, highest);
}

}  // namespace tinyllama::cuda
