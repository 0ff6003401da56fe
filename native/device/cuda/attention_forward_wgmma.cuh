// FlashAttention-3's forward on Hopper's warp-group products. A block works on one query head and GROUPS * 64 queries at a time; a warp-group owns
// 64 of them and walks down the key tiles with an online softmax, its probabilities staying in registers.
// COPIER: one more warp-group gives its registers to the others and copies, running ahead of them through tiles and work items alike (an item: a
// query tile of a head), so that an item's first tiles arrive while its predecessor ends; blocks stay for many items. Without it the last
// warp to be done with a stage has it filled anew, and a block does one item: for more than one block per multiprocessor.
// OVERLAP: the next tile's scores are under way while the softmax of the present one is computed. TURNS: the warp-groups take turns at issuing
// products, so that one's softmax runs during the other's products.
// Items with the most keys come first.
// Bytes moved: q once, out once, and (from L2) keys and values once per query tile.
#pragma once
#include <cuda.h>

#include "native/device/cuda/attention_forward_mma.cuh"
#include "native/device/cuda/attention_warpgroup.cuh"

namespace tinyllama::cuda {

struct GroupForwardArguments {
  ForwardArguments base;
  int batch, tiles;  // query tiles of a sequence
};

template <int S, int GROUPS, int KT, int STAGES, bool COPIER>
struct GroupForwardLayout {
  static constexpr int query_rows = GROUPS * 64, threads = (GROUPS + (COPIER ? 1 : 0)) * 128;
  static constexpr int query_bytes = query_rows * S * 2, tile_bytes = KT * S * 2;
  static constexpr int queries = 0, keys = query_bytes, values = keys + STAGES * tile_bytes, after = values + STAGES * tile_bytes;
  static constexpr int outs = COPIER ? after : queries;  // with a copier the next item's queries arrive meanwhile
  // Two barriers of the queries, then full and empty ones of the keys' stages and of the values'.
  static constexpr int barriers = COPIER ? after + query_bytes : after, bytes = barriers + (2 + 4 * STAGES) * 8;
};

// One row's share of the online softmax; gives what the sums so far are to be multiplied by.
template <int N>
__device__ __forceinline__ void group_softmax(float (&scores)[N][4], float (&maxima)[2], float (&sums)[2], float (&rescale)[2], float c) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float top = maxima[r];
#pragma unroll
    for (int n = 0; n < N; ++n) top = fmaxf(top, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    const float offset = top == minus_infinity ? 0.f : top * c;  // a row without a key so far: no infinity minus infinity
    rescale[r] = exp2_approximate(fmaf(maxima[r], c, -offset));
    maxima[r] = top;
    float sum = 0.f;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 2 * r; e < 2 * r + 2; ++e) {
        scores[n][e] = exp2_approximate(fmaf(scores[n][e], c, -offset));
        sum += scores[n][e];
      }
    sums[r] = fmaf(sums[r], rescale[r], sum);
  }
}

template <int S, int GROUPS, int KT, int STAGES, int BLOCKS, bool COPIER, bool OVERLAP, bool TURNS>
__global__ void __launch_bounds__((GROUPS + (COPIER ? 1 : 0)) * 128, BLOCKS)
    attention_forward_wgmma(const GroupForwardArguments group_arguments, const __grid_constant__ CUtensorMap query_map,
                            const __grid_constant__ CUtensorMap key_map) {
#ifdef TINYLLAMA_WARPGROUP_CODE
  using Layout = GroupForwardLayout<S, GROUPS, KT, STAGES, COPIER>;
  constexpr int depth_steps = S / 16, N = KT / 8, D = S / 8, panels = S / 64, rows_per_block = Layout::query_rows;
  constexpr int consumers = GROUPS * 4;  // warps
  static_assert((OVERLAP || !TURNS) && (COPIER ? BLOCKS == 1 : true));
  const ForwardArguments& arguments = group_arguments.base;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) >> 5, 0);
  const int length = arguments.length, heads = arguments.heads, kv_heads = arguments.kv_heads;
  const std::uint32_t base = shared_address(dynamic_shared());
  const std::uint32_t query_full = base + Layout::barriers, query_empty = query_full + 8;
  const std::uint32_t key_full = query_empty + 8, key_empty = key_full + STAGES * 8, value_full = key_empty + STAGES * 8,
                      value_empty = value_full + STAGES * 8;
  if (threadIdx.x == 0) {
    barrier_init(query_full, 1), barrier_init(query_empty, consumers);
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(key_full + stage * 8, 1), barrier_init(value_full + stage * 8, 1);
      if (COPIER)
        barrier_init(key_empty + stage * 8, consumers), barrier_init(value_empty + stage * 8, consumers);
      else
        store_shared(key_empty + stage * 8, 0), store_shared(value_empty + stage * 8, 0);  // counters of the warps that are done
    }
    publish_shared();
  }
  __syncthreads();

  const int columns = group_arguments.batch * heads, items = columns * group_arguments.tiles;
  // The block's work item of a round: blocks take a round's items in turn from left and from right, so that their sums of work are alike.
  const auto item_of = [&](int round) {
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
  };
  struct Item {
    int batch, head, query_first, tile_first, tile_last, highest;
  };
  const auto describe = [&](int index) {
    Item item;
    const int column = index % columns;
    item.batch = column / heads, item.head = column % heads;
    item.query_first = (group_arguments.tiles - 1 - index / columns) * rows_per_block;
    int lowest = 0;
    item.highest = 0;
    if (arguments.first_keys != nullptr) {
      const std::int32_t* first_keys = arguments.first_keys + static_cast<std::int64_t>(item.batch) * length;
      lowest = length;
#pragma unroll
      for (int i = 0; i < rows_per_block / 32; ++i) {
        const int first_key = first_keys[min(item.query_first + i * 32 + lane, length - 1)];
        lowest = min(lowest, first_key), item.highest = max(item.highest, first_key);
      }
      lowest = __reduce_min_sync(0xffffffffu, lowest), item.highest = __reduce_max_sync(0xffffffffu, item.highest);
    }
    item.tile_first = lowest / KT, item.tile_last = (min(item.query_first + rows_per_block, length) - 1) / KT;
    return item;
  };

  // Copies of an item's tiles; `at` is the tile's number among all that the block copies.
  const auto copy_queries = [&](const Item& item) {
    barrier_expect(query_full, Layout::query_bytes);
#pragma unroll
    for (int panel = 0; panel < panels; ++panel)
      copy_panel(base + Layout::queries + panel * rows_per_block * 128, &query_map, item.head * S + panel * 64, item.query_first, item.batch,
                 query_full);
  };
  const auto copy_tile = [&](const Item& item, int step, int at, std::uint32_t tiles, std::uint32_t full, int first_column) {
    const int stage = at % STAGES, column = first_column + item.head / (heads / kv_heads) * S;
    barrier_expect(full + stage * 8, Layout::tile_bytes);
#pragma unroll
    for (int panel = 0; panel < panels; ++panel)
      copy_panel(tiles + static_cast<std::uint32_t>(stage * Layout::tile_bytes + panel * KT * 128), &key_map, column + panel * 64,
                 (item.tile_last - step) * KT, item.batch, full + stage * 8);
  };
  const auto copy_keys = [&](const Item& item, int step, int at) { copy_tile(item, step, at, base + Layout::keys, key_full, heads * S); };
  const auto copy_values = [&](const Item& item, int step, int at) {
    copy_tile(item, step, at, base + Layout::values, value_full, (heads + kv_heads) * S);
  };

  if (COPIER && warp >= consumers) {
    if constexpr (GROUPS == 2) lower_registers<40>();
    if constexpr (GROUPS == 3) lower_registers<32>();
    if (warp > consumers) return;
    int position = 0;  // of the next tile in the ring of stages
    for (int round = 0; round * static_cast<int>(gridDim.x) < items; ++round) {
      const int index = item_of(round);
      if (index >= items) continue;
      const Item item = describe(index);
      if (lane == 0) {
        const auto wait_empty = [&](std::uint32_t empty, int at) { barrier_wait(empty + at % STAGES * 8, (at / STAGES & 1) ^ 1); };
        const int last = item.tile_last - item.tile_first;
        barrier_wait(query_empty, (round & 1) ^ 1);
        copy_queries(item);
        for (int step = 0; step <= last + 1; ++step) {
          if (step <= last) wait_empty(key_empty, position + step), copy_keys(item, step, position + step);
          if (step > 0) wait_empty(value_empty, position + step - 1), copy_values(item, step - 1, position + step - 1);
        }
      }
      position += item.tile_last - item.tile_first + 1;
    }
    return;
  }

  if constexpr (COPIER && GROUPS == 2) raise_registers<232>();
  if constexpr (COPIER && GROUPS == 3) raise_registers<160>();
  const int group = warp / 4;
  const float c = arguments.scale * log2_e;
  const auto take_turn = [&] {
    if constexpr (TURNS) numbered_wait(1 + group, 256);
  };
  const auto pass_turn = [&] {
    if constexpr (TURNS) numbered_arrive(1 + (group + 1) % GROUPS, 256);
  };
  if (TURNS && group == 0) numbered_arrive(1, 256);  // the first turn

  int position = 0;
  for (int round = 0; round * static_cast<int>(gridDim.x) < items; ++round) {
    const int index = item_of(round);
    if (index >= items) continue;
    const Item item = describe(index);
    const int tiles = item.tile_last - item.tile_first + 1, group_first = item.query_first + group * 64;
    const int row = group_first + warp % 4 * 16 + lane / 4;  // and 8 later
    const auto first_key_of = [&](int of_row) {
      return arguments.first_keys[static_cast<std::int64_t>(item.batch) * length + min(of_row, length - 1)];
    };
    const auto stage_of = [&](int step) { return (position + step) % STAGES; };
    const auto parity_of = [&](int step) { return (position + step) / STAGES & 1; };
    // This warp is done with a tile's keys or values, or with the queries.
    const auto release_keys = [&](int step) {
      const std::uint32_t empty = key_empty + stage_of(step) * 8;
      if (COPIER && lane == 0) barrier_arrive(empty);
      if (!COPIER && lane == 0 && count_shared(empty) % consumers == consumers - 1 && step + STAGES < tiles)
        copy_keys(item, step + STAGES, step + STAGES);
      __syncwarp();
    };
    const auto release_values = [&](int step) {
      const std::uint32_t empty = value_empty + stage_of(step) * 8;
      if (COPIER && lane == 0) barrier_arrive(empty);
      if (!COPIER && lane == 0 && count_shared(empty) % consumers == consumers - 1 && step + STAGES < tiles)
        copy_values(item, step + STAGES, step + STAGES);
      __syncwarp();
    };
    const auto release_queries = [&] {
      if (COPIER && lane == 0) barrier_arrive(query_empty);
    };
    if (!COPIER && threadIdx.x == 0) {
      copy_queries(item);
      for (int step = 0; step < min(STAGES, tiles); ++step) copy_keys(item, step, step), copy_values(item, step, step);
    }

    float scores[N][4], out[D][4], maxima[2] = {minus_infinity, minus_infinity}, sums[2] = {}, rescale[2];
    std::uint32_t p[KT / 16][4];
    const auto issue_scores = [&](int step) {
      const std::uint64_t query = tile_descriptor(base + Layout::queries + static_cast<std::uint32_t>(group * 64 * 128));
      const std::uint64_t key = tile_descriptor(base + Layout::keys + static_cast<std::uint32_t>(stage_of(step) * Layout::tile_bytes));
      hold(scores);
      group_fence();
#pragma unroll
      for (int k = 0; k < depth_steps; ++k)
        group_multiply<0, 0>(scores, query + static_cast<std::uint64_t>((k / 4 * rows_per_block * 128 + k % 4 * 32) >> 4),
                             key + static_cast<std::uint64_t>((k / 4 * KT * 128 + k % 4 * 32) >> 4), k > 0);
      group_commit();
    };
    const auto issue_out = [&](int step, bool add) {
      const std::uint64_t value =
          tile_descriptor(base + Layout::values + static_cast<std::uint32_t>(stage_of(step) * Layout::tile_bytes), panels > 1 ? KT * 128 : 1024);
      hold(out), hold(p);
      group_fence();
#pragma unroll
      for (int k = 0; k < KT / 16; ++k) group_multiply<1>(out, p[k], value + static_cast<std::uint64_t>(k * 16 * 128 >> 4), k > 0 || add);
      group_commit();
    };
    const auto mask = [&](int step) {
      const int key_first = (item.tile_last - step) * KT;
      if (key_first + KT - 1 <= group_first && item.highest <= key_first) return;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int first_key = item.highest > key_first ? first_key_of(row + r * 8) : 0;
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int key = key_first + n * 8 + (lane % 4) * 2 + e;
            if (key > row + r * 8 || key < first_key) scores[n][2 * r + e] = minus_infinity;
          }
      }
    };
    const auto round_scores = [&] {
#pragma unroll
      for (int k = 0; k < KT / 16; ++k) left_from_sums(p[k], scores, k);
    };
    const auto rescale_out = [&] {
#pragma unroll
      for (int d = 0; d < D; ++d) out[d][0] *= rescale[0], out[d][1] *= rescale[0], out[d][2] *= rescale[1], out[d][3] *= rescale[1];
    };

    // Tiles that are later than all of this warp-group's queries; all of them where the queries are behind the end.
    const bool idle = group_first >= length;
    int step = 0;
    for (; step < tiles && (idle || (item.tile_last - step) * KT > group_first + 63); ++step) {
      barrier_wait(key_full + stage_of(step) * 8, parity_of(step));
      release_keys(step);
      barrier_wait(value_full + stage_of(step) * 8, parity_of(step));
      release_values(step);
      if (step < tiles - 1) take_turn(), pass_turn();
    }
    barrier_wait(query_full, round & 1);
    if (idle) {
      release_queries();
      position += tiles;
      if (!COPIER) __syncthreads();
      continue;
    }
    barrier_wait(key_full + stage_of(step) * 8, parity_of(step));
    issue_scores(step);
    group_wait<0>();
    hold(scores);
    release_keys(step);
    if (step == tiles - 1) release_queries();
    mask(step);
    group_softmax(scores, maxima, sums, rescale, c);
    round_scores();
    bool add = false;
    for (++step; step < tiles; ++step) {
      const std::uint32_t value_now = value_full + stage_of(step - 1) * 8;
      if constexpr (OVERLAP) {
        barrier_wait(key_full + stage_of(step) * 8, parity_of(step));
        take_turn();
        issue_scores(step);
        barrier_wait(value_now, parity_of(step - 1));
        issue_out(step - 1, add);
        pass_turn();
        group_wait<1>();
      } else {
        barrier_wait(value_now, parity_of(step - 1));
        issue_out(step - 1, add);
        group_wait<0>();
        hold(out), hold(p);
        release_values(step - 1);
        barrier_wait(key_full + stage_of(step) * 8, parity_of(step));
        issue_scores(step);
        group_wait<0>();
      }
      hold(scores);
      release_keys(step);
      if (step == tiles - 1) release_queries();
      mask(step);
      group_softmax(scores, maxima, sums, rescale, c);
      if constexpr (OVERLAP) {
        group_wait<0>();
        hold(out), hold(p);
        release_values(step - 1);
      }
      rescale_out();
      round_scores();
      add = true;
    }
    barrier_wait(value_full + stage_of(tiles - 1) * 8, parity_of(tiles - 1));
    issue_out(tiles - 1, add);
    group_wait<0>();
    hold(out), hold(p);
    release_values(tiles - 1);
    position += tiles;

    // Out through this warp's own rows in shared memory, so that it leaves in 16-byte pieces. Without a copier it is the queries' memory.
    if (!COPIER) __syncthreads();
    const std::uint32_t own = base + Layout::outs + static_cast<std::uint32_t>(warp * 16 * S * 2);
    float* lse = arguments.lse + (static_cast<std::int64_t>(item.batch) * heads + item.head) * length;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = sums[r];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const float inverse = sum > 0.f ? 1.f / sum : 0.f;
      if (lane % 4 == 0 && row + r * 8 < length) lse[row + r * 8] = maxima[r] * arguments.scale + logf(sum);
#pragma unroll
      for (int d = 0; d < D; ++d)
        store_shared(own + swizzled<S>(r * 8 + lane / 4, d) + static_cast<std::uint32_t>(lane % 4) * 4,
                     pack_bf16(out[d][2 * r] * inverse, out[d][2 * r + 1] * inverse));
    }
    __syncwarp();
    __nv_bfloat16* target = arguments.out + static_cast<std::int64_t>(item.batch) * length * arguments.out_stride + item.head * S;
#pragma unroll
    for (int i = 0; i < 16 * D / 32; ++i) {
      const int piece_index = i * 32 + lane, local = piece_index / D, chunk = piece_index % D, to = group_first + warp % 4 * 16 + local;
      const uint4 piece = load_shared_16(own + swizzled<S>(local, chunk));
      if (to < length) *reinterpret_cast<uint4*>(target + static_cast<std::int64_t>(to) * arguments.out_stride + chunk * 8) = piece;
    }
    __syncwarp();
  }
#else
  __trap();
#endif
}

}  // namespace tinyllama::cuda
