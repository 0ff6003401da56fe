// The backward of attention_backward_mma.cuh (its comment explains turns and waves) on Hopper's warp-group products, for head size 64.
//
// One block: a tile of 128 keys of one group, two warp-groups with 64 keys each. They walk over the query tiles (64 queries) from the last one up
// and for each over the group's query heads, each for itself: scores and dP transposed, P and dS from registers into dV and dK. The next
// step's scores are under way while this step ends. dS goes through shared memory to SUMMERS more warp-groups, which take turns at the
// steps: dQ's sum so far comes from global memory, dS·K is added to it by the tensor core, and it goes back, or, after the last key tile,
// out. So nobody but them waits for memory or for other blocks. A step's queries, dO and row statistics are copied into the ring of STAGES by
// the last warp that is done with a stage.
// Bytes moved: as there.
#pragma once
#include <cuda.h>

#include "native/device/cuda/attention_backward_mma.cuh"
#include "native/device/cuda/attention_warpgroup.cuh"

namespace tinyllama::cuda {

struct GroupBackward {
  static constexpr int S = 64, QT = 64, KT = 128, turns_per_tile = 4;
};

template <int STAGES, int SUMMERS>
struct GroupBackwardLayout {
  static constexpr int threads = (2 + SUMMERS) * 128, key_bytes = 128 * 64 * 2, query_bytes = 64 * 64 * 2, row_bytes = 2 * 64 * 4;
  static constexpr int keys = 0, values = key_bytes, dscores = 2 * key_bytes, queries = 4 * key_bytes;  // dS has two buffers
  static constexpr int douts = queries + STAGES * query_bytes, rows = douts + STAGES * query_bytes;
  // Barriers: keys and values; a stage is full; dS is full, dS is empty. Then counters of warps that are done with a stage, and what to copy next.
  static constexpr int barriers = rows + STAGES * row_bytes, counters = barriers + (1 + STAGES + 4) * 8, next = counters + STAGES * 4;
  static constexpr int bytes = next + 8;
};

template <int STAGES, int SUMMERS>
__global__ void __launch_bounds__((2 + SUMMERS) * 128, 1)
    attention_backward_wgmma(const BackwardArguments arguments, const __grid_constant__ CUtensorMap key_map,
                             const __grid_constant__ CUtensorMap query_map, const __grid_constant__ CUtensorMap dout_map) {
#ifdef TINYLLAMA_WARPGROUP_CODE
  using Layout = GroupBackwardLayout<STAGES, SUMMERS>;
  constexpr int S = GroupBackward::S, QT = GroupBackward::QT, KT = GroupBackward::KT, N = QT / 8, D = S / 8;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) >> 5, 0);
  const int length = arguments.length, heads = arguments.heads, kv_heads = arguments.kv_heads, group_heads = heads / kv_heads;
  unsigned char* shared = dynamic_shared();
  const std::uint32_t base = shared_address(shared);
  const std::uint32_t key_full = base + Layout::barriers, full = key_full + 8, dscore_full = full + STAGES * 8, dscore_empty = dscore_full + 16;
  int* next_copy = reinterpret_cast<int*>(shared + Layout::next);  // tile and head

  // Which block this is.
  const int key_tiles = (length + KT - 1) / KT, query_tiles = (length + QT - 1) / QT, groups = arguments.batch * kv_heads;
  if (threadIdx.x == 0) *next_copy = atomicAdd(arguments.turns, 1);
  __syncthreads();
  const int ticket = *next_copy;
  __syncthreads();
  const int wave_blocks = arguments.wave * key_tiles, wave_first = ticket / wave_blocks * arguments.wave;
  const int wave_size = min(arguments.wave, groups - wave_first), in_wave = ticket % wave_blocks;
  const int key_tile = in_wave / wave_size, batch_group = wave_first + in_wave % wave_size;
  const int batch = batch_group / kv_heads, head_group = batch_group % kv_heads, head_first = head_group * group_heads;
  const int key_first = key_tile * KT;
  const std::int64_t sequence = static_cast<std::int64_t>(batch) * length, first_head = static_cast<std::int64_t>(batch) * heads + head_first;
  const int2* bounds = arguments.first_key_bounds;
  if (bounds != nullptr) bounds += static_cast<std::int64_t>(batch) * query_tiles;

  // A step is a query tile and a head. The walk has ended when `tile` lies before the block's keys.
  struct Step {
    int tile, head;
  };
  const auto seeing = [&](int tile) {
    if (bounds != nullptr)
      while (tile * QT >= key_first && bounds[tile].x >= key_first + KT) --tile;
    return tile;
  };
  const auto following = [&](Step step) { return step.head + 1 < group_heads ? Step{step.tile, step.head + 1} : Step{seeing(step.tile - 1), 0}; };
  const auto is_step = [&](Step step) { return step.tile * QT >= key_first; };
  const auto copy_step = [&](Step step, int stage) {
    const std::uint32_t barrier = full + stage * 8;
    const int column = (head_first + step.head) * S;
    barrier_expect(barrier, 2 * Layout::query_bytes + Layout::row_bytes);
    copy_panel(base + Layout::queries + stage * Layout::query_bytes, &query_map, column, step.tile * QT, batch, barrier);
    copy_panel(base + Layout::douts + stage * Layout::query_bytes, &dout_map, column, step.tile * QT, batch, barrier);
    copy_bytes(base + Layout::rows + stage * Layout::row_bytes,
               arguments.statistics + ((first_head + step.head) * query_tiles + step.tile) * (2 * QT), Layout::row_bytes, barrier);
  };
  const Step first_step{seeing(query_tiles - 1), 0};

  if (threadIdx.x == 0) {
    barrier_init(key_full, 1);
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(full + stage * 8, 1);
      store_shared(base + Layout::counters + stage * 4, 0);
    }
    for (int buffer = 0; buffer < 2; ++buffer) barrier_init(dscore_full + buffer * 8, 8), barrier_init(dscore_empty + buffer * 8, 4);
    publish_shared();
    const int column = (heads + head_group) * S;
    barrier_expect(key_full, 2 * Layout::key_bytes);
    copy_panel(base + Layout::keys, &key_map, column, key_first, batch, key_full);
    copy_panel(base + Layout::values, &key_map, column + kv_heads * S, key_first, batch, key_full);
    Step step = first_step;
    for (int stage = 0; stage < STAGES && is_step(step); ++stage, step = following(step)) copy_step(step, stage);
    next_copy[0] = step.tile, next_copy[1] = step.head;
  }
  __syncthreads();

  if (warp >= 8) {
    if constexpr (SUMMERS == 1) lower_registers<88>();
    if constexpr (SUMMERS == 2) lower_registers<64>();
    const int summer = warp / 4 - 2, part = warp % 4;
    barrier_wait(key_full, 0);
    int number = 0;
    for (Step step = first_step; is_step(step); step = following(step), ++number) {
      if (number % SUMMERS != summer) continue;
      const int buffer = number % 2, query_first = step.tile * QT;
      const std::int64_t tile_index = (first_head + step.head) * query_tiles + step.tile;
      float* sums = arguments.dq_sums + tile_index * (QT * S) + static_cast<int>(threadIdx.x) % 128 * 4;
      int* turn = arguments.turns + 1 + tile_index * GroupBackward::turns_per_tile + part;
      const int tile_first = bounds == nullptr ? 0 : bounds[step.tile].x / KT, tile_last = query_first / KT;
      float dq[D][4];
      const bool add = key_tile > tile_first;
      if (add) {
        if (lane == 0)
          while (load_acquire(turn) < key_tile - tile_first) {
          }
        __syncwarp();
#pragma unroll
        for (int d = 0; d < D; ++d) {
          const float4 sum = __ldcg(reinterpret_cast<const float4*>(sums + d * 512));
          dq[d][0] = sum.x, dq[d][1] = sum.y, dq[d][2] = sum.z, dq[d][3] = sum.w;
        }
      } else {
#pragma unroll
        for (int d = 0; d < D; ++d) dq[d][0] = dq[d][1] = dq[d][2] = dq[d][3] = 0.f;
      }
      barrier_wait(dscore_full + buffer * 8, number / 2 & 1);
      const std::uint64_t dscores = tile_descriptor(base + Layout::dscores + static_cast<std::uint32_t>(buffer * Layout::key_bytes));
      const std::uint64_t keys = tile_descriptor(base + Layout::keys);
      const bool all = query_first + QT > key_first + 64;  // else the second half of the keys is later than the queries
      hold(dq);
      group_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        group_multiply<1, 1>(dq, dscores + static_cast<std::uint64_t>(k * 2048 >> 4), keys + static_cast<std::uint64_t>(k * 2048 >> 4), 1);
      if (all) {
#pragma unroll
        for (int k = 4; k < 8; ++k)
          group_multiply<1, 1>(dq, dscores + static_cast<std::uint64_t>(k * 2048 >> 4), keys + static_cast<std::uint64_t>(k * 2048 >> 4), 1);
      }
      group_commit();
      group_wait<0>();
      hold(dq);
      if (lane == 0) barrier_arrive(dscore_empty + buffer * 8);
      if (key_tile < tile_last) {
#pragma unroll
        for (int d = 0; d < D; ++d) __stcg(reinterpret_cast<float4*>(sums + d * 512), make_float4(dq[d][0], dq[d][1], dq[d][2], dq[d][3]));
        __syncwarp();
        if (lane == 0) store_release(turn, key_tile - tile_first + 1);
      } else {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = query_first + part * 16 + r * 8 + lane / 4;
          if (row >= length) continue;
          __nv_bfloat16* target = arguments.dqkv + (sequence + row) * arguments.dqkv_stride + (head_first + step.head) * S + (lane % 4) * 2;
#pragma unroll
          for (int d = 0; d < D; ++d)
            *reinterpret_cast<std::uint32_t*>(target + d * 8) = pack_bf16(dq[d][2 * r] * arguments.scale, dq[d][2 * r + 1] * arguments.scale);
        }
      }
      __syncwarp();
    }
    return;
  }

  if constexpr (SUMMERS == 1) raise_registers<208>();
  if constexpr (SUMMERS == 2) raise_registers<192>();
  const int group = warp / 4, group_first = key_first + group * 64, own_first = group_first + warp % 4 * 16 + lane / 4;
  const float c = arguments.scale * log2_e;
  const std::uint32_t own_offset = static_cast<std::uint32_t>(group * 64 * 128);
  const std::uint64_t keys = tile_descriptor(base + Layout::keys + own_offset), values = tile_descriptor(base + Layout::values + own_offset);
  // Row lane / 4 of the warp's sixteen rows of dS, this lane's two columns of the first chunk.
  const std::uint32_t dscore_start = sums_start<QT>(base + Layout::dscores + static_cast<std::uint32_t>(warp * 16 * QT * 2), lane);

  float dkeys[D][4] = {}, dvalues[D][4] = {}, scores[N][4], dp[N][4];
  std::uint32_t p[QT / 16][4], ds[QT / 16][4];
  const auto issue_scores = [&](int stage) {
    const std::uint64_t queries = tile_descriptor(base + Layout::queries + static_cast<std::uint32_t>(stage * Layout::query_bytes));
    const std::uint64_t douts = tile_descriptor(base + Layout::douts + static_cast<std::uint32_t>(stage * Layout::query_bytes));
    hold(scores), hold(dp);
    group_fence();
#pragma unroll
    for (int k = 0; k < S / 16; ++k)
      group_multiply<0, 0>(scores, keys + static_cast<std::uint64_t>(k * 2), queries + static_cast<std::uint64_t>(k * 2), k > 0);
    group_commit();
#pragma unroll
    for (int k = 0; k < S / 16; ++k)
      group_multiply<0, 0>(dp, values + static_cast<std::uint64_t>(k * 2), douts + static_cast<std::uint64_t>(k * 2), k > 0);
    group_commit();
  };
  const auto issue_sums = [&](float(&sums)[D][4], std::uint32_t(&left)[QT / 16][4], int tile_start) {
    const std::uint64_t right = tile_descriptor(base + static_cast<std::uint32_t>(tile_start));
    hold(sums), hold(left);
    group_fence();
#pragma unroll
    for (int k = 0; k < QT / 16; ++k) group_multiply<1>(sums, left[k], right + static_cast<std::uint64_t>(k * 2048 >> 4), 1);
    group_commit();
  };
  const auto release = [&](int stage) {
    if (lane == 0 && count_shared(base + Layout::counters + stage * 4) % 8 == 7) {
      const Step step{next_copy[0], next_copy[1]};
      if (is_step(step)) {
        copy_step(step, stage);
        const Step after = following(step);
        next_copy[0] = after.tile, next_copy[1] = after.head;
      }
    }
    __syncwarp();
  };
  const auto has_keys_for = [&](Step step) { return group_first < (step.tile + 1) * QT; };  // else all of them are later than the queries

  int number = 0, stage = 0, parity = 0;
  const auto advance = [&] {
    ++number;
    if (++stage == STAGES) stage = 0, parity ^= 1;
  };
  Step step = first_step;
  barrier_wait(key_full, 0);
  for (; is_step(step) && has_keys_for(step); step = following(step), advance()) {
    barrier_wait(full + stage * 8, parity);
    issue_scores(stage);
    // The step before has ended.
    group_wait<2>();
    hold(dvalues), hold(dkeys), hold(p), hold(ds);
    if (number > 0) release(stage == 0 ? STAGES - 1 : stage - 1);
    const int query_first = step.tile * QT;
    const unsigned char* rows = shared + Layout::rows + stage * Layout::row_bytes + (lane % 4) * 8;
    group_wait<1>();
    hold(scores);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float2 lse2 = *reinterpret_cast<const float2*>(rows + n * 32);
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[n][e] = exp2_approximate(fmaf(scores[n][e], c, -(e % 2 == 0 ? lse2.x : lse2.y)));
    }
    const bool documents = bounds != nullptr && bounds[step.tile].y > key_first;
    if (group_first + 63 > query_first || documents) {
#pragma unroll
      for (int n = 0; n < N; ++n)
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          const int query = query_first + n * 8 + (lane % 4) * 2 + column;
          const int first_key = documents ? arguments.first_keys[sequence + min(query, length - 1)] : 0;
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int key = own_first + r * 8;
            if (key > query || key < first_key) scores[n][2 * r + column] = 0.f;
          }
        }
    }
#pragma unroll
    for (int k = 0; k < QT / 16; ++k) left_from_sums(p[k], scores, k);
    issue_sums(dvalues, p, Layout::douts + stage * Layout::query_bytes);
    group_wait<1>();
    hold(dp);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float2 delta = *reinterpret_cast<const float2*>(rows + QT * 4 + n * 32);
#pragma unroll
      for (int r = 0; r < 2; ++r)
        ds[n / 2][n % 2 * 2 + r] = pack_bf16(scores[n][2 * r] * (dp[n][2 * r] - delta.x), scores[n][2 * r + 1] * (dp[n][2 * r + 1] - delta.y));
    }
    issue_sums(dkeys, ds, Layout::queries + stage * Layout::query_bytes);
    const int buffer = number % 2;
    barrier_wait(dscore_empty + buffer * 8, (number / 2 & 1) ^ 1);
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        store_shared(fragment_address<QT>(dscore_start + static_cast<std::uint32_t>(buffer * Layout::key_bytes), r * 8, n), ds[n / 2][n % 2 * 2 + r]);
    publish_shared();
    __syncwarp();
    if (lane == 0) barrier_arrive(dscore_full + buffer * 8);
    __syncwarp();
  }
  group_wait<0>();
  hold(dvalues), hold(dkeys), hold(p), hold(ds);
  if (number > 0) release(stage == 0 ? STAGES - 1 : stage - 1);
  // Steps whose queries come before all of these keys: only the others wait for us.
  for (; is_step(step); step = following(step), advance()) {
    barrier_wait(full + stage * 8, parity);
    release(stage);
    const int buffer = number % 2;
    barrier_wait(dscore_empty + buffer * 8, (number / 2 & 1) ^ 1);
    if (lane == 0) barrier_arrive(dscore_full + buffer * 8);
    __syncwarp();
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = own_first + r * 8;
    if (row >= length) continue;
    __nv_bfloat16* target = arguments.dqkv + (sequence + row) * arguments.dqkv_stride + (heads + head_group) * S + (lane % 4) * 2;
#pragma unroll
    for (int d = 0; d < D; ++d) {
      *reinterpret_cast<std::uint32_t*>(target + d * 8) = pack_bf16(dkeys[d][2 * r] * arguments.scale, dkeys[d][2 * r + 1] * arguments.scale);
      *reinterpret_cast<std::uint32_t*>(target + kv_heads * S + d * 8) = pack_bf16(dvalues[d][2 * r], dvalues[d][2 * r + 1]);
    }
  }
#else
  __trap();
#endif
}

}  // namespace tinyllama::cuda
