// Attention in plain fp32 arithmetic on tiles of 32 queries by 32 keys. Blocks of 256 threads: eight lanes share one row of the tile that the block
// owns; lane l of the eight holds columns l, l + 8, ... of its row's head vector in registers (at most C of them) and scores with the
// other tile's rows l, l + 8, .... The backward runs in two kernels, one by key tiles and one by query tiles, so that every sum has one
// owner and a fixed order.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace tinyllama::cuda {

constexpr int plain_tile = 32, plain_lanes = 8, plain_threads = plain_tile * plain_lanes, plain_pitch = plain_tile + 1;

template <class T>
struct PlainArguments {
  const T *qkv, *out, *dout;
  T *result, *dqkv;  // the forward's out; the backward's dqkv
  float* lse;
  const float *lse_in, *delta;
  const std::int32_t* first_keys;  // may be null
  std::int64_t qkv_stride, out_stride, dout_stride, dqkv_stride;
  int batch, length, heads, kv_heads, size;
  float scale;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void from_float(float& target, float value) { target = value; }
__device__ __forceinline__ void from_float(__nv_bfloat16& target, float value) { target = __float2bfloat16_rn(value); }

__device__ __forceinline__ float sum_of_eight(float value) {
#pragma unroll
  for (int offset = 1; offset < plain_lanes; offset *= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}
__device__ __forceinline__ float max_of_eight(float value) {
#pragma unroll
  for (int offset = 1; offset < plain_lanes; offset *= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

// 32 rows of `size` columns, from row `first` on, as fp32 with one column of padding; zeros after `limit`.
template <class T>
__device__ __forceinline__ void load_plain_tile(float* tile, const T* matrix, std::int64_t stride, int first, int limit, int size) {
  for (int index = static_cast<int>(threadIdx.x); index < plain_tile * size; index += plain_threads) {
    const int row = index / size, column = index % size;
    tile[row * (size + 1) + column] = first + row < limit ? to_float(matrix[(first + row) * stride + column]) : 0.f;
  }
}

__device__ __forceinline__ float plain_dot(const float* a, const float* b, int size) {
  float sum = 0.f;
  for (int d = 0; d < size; ++d) sum = fmaf(a[d], b[d], sum);
  return sum;
}

// sums[c] += Σ_row weights[row] · tile[row][lane + 8c].
template <int C>
__device__ __forceinline__ void add_weighted_rows(float (&sums)[C], const float* weights, const float* tile, int size, int lane) {
  for (int row = 0; row < plain_tile; ++row) {
    const float weight = weights[row];
#pragma unroll
    for (int c = 0; c < C; ++c)
      if (lane + c * plain_lanes < size) sums[c] = fmaf(weight, tile[row * (size + 1) + lane + c * plain_lanes], sums[c]);
  }
}

template <class T, int C>
__device__ __forceinline__ void store_plain_row(T* row, const float (&values)[C], float factor, int size, int lane) {
#pragma unroll
  for (int c = 0; c < C; ++c)
    if (lane + c * plain_lanes < size) from_float(row[lane + c * plain_lanes], values[c] * factor);
}

template <class T>
__device__ __forceinline__ int first_key_of(const PlainArguments<T>& arguments, std::int64_t sequence, int row) {
  return arguments.first_keys == nullptr || row >= arguments.length ? 0 : arguments.first_keys[sequence + row];
}

extern __shared__ float plain_memory[];

// Grid: (query tiles, heads, batch). Shared: queries, keys, values, and the tile's weights.
template <class T, int C>
__global__ void __launch_bounds__(plain_threads, 1) attention_forward_plain(const PlainArguments<T> arguments) {
  const int size = arguments.size, length = arguments.length, lane = static_cast<int>(threadIdx.x) % plain_lanes;
  const int local = static_cast<int>(threadIdx.x) / plain_lanes, query_first = static_cast<int>(blockIdx.x) * plain_tile;
  const int row = query_first + local, head = static_cast<int>(blockIdx.y), group = head / (arguments.heads / arguments.kv_heads);
  const std::int64_t sequence = static_cast<std::int64_t>(blockIdx.z) * length;
  const T* rows = arguments.qkv + sequence * arguments.qkv_stride;
  const T* keys = rows + (arguments.heads + group) * size;
  float* query_tile = plain_memory;
  float* key_tile = query_tile + plain_tile * (size + 1);
  float* value_tile = key_tile + plain_tile * (size + 1);
  float* weights = value_tile + plain_tile * (size + 1) + local * plain_pitch;

  load_plain_tile(query_tile, rows + head * size, arguments.qkv_stride, query_first, length, size);
  const int first_key = first_key_of(arguments, sequence, row);
  float out[C] = {}, maximum = -__builtin_huge_valf(), sum = 0.f;
  const int key_last = min(query_first + plain_tile, length) - 1;
  for (int key_first = 0; key_first <= key_last; key_first += plain_tile) {
    if (!__syncthreads_or(row < length && first_key < key_first + plain_tile)) continue;
    load_plain_tile(key_tile, keys, arguments.qkv_stride, key_first, length, size);
    load_plain_tile(value_tile, keys + arguments.kv_heads * size, arguments.qkv_stride, key_first, length, size);
    __syncthreads();
    float scores[plain_tile / plain_lanes], top = maximum;
#pragma unroll
    for (int i = 0; i < plain_tile / plain_lanes; ++i) {
      const int other = lane + i * plain_lanes, key = key_first + other;
      const float score = plain_dot(query_tile + local * (size + 1), key_tile + other * (size + 1), size) * arguments.scale;
      scores[i] = key <= row && key >= first_key ? score : -__builtin_huge_valf();
      top = fmaxf(top, scores[i]);
    }
    top = max_of_eight(top);
    if (top > -__builtin_huge_valf()) {
      const float rescale = expf(maximum - top);
      maximum = top;
      float part = 0.f;
#pragma unroll
      for (int i = 0; i < plain_tile / plain_lanes; ++i) {
        const float weight = expf(scores[i] - top);
        weights[lane + i * plain_lanes] = weight;
        part += weight;
      }
      sum = fmaf(sum, rescale, part);
#pragma unroll
      for (int c = 0; c < C; ++c) out[c] *= rescale;
    } else {
#pragma unroll
      for (int i = 0; i < plain_tile / plain_lanes; ++i) weights[lane + i * plain_lanes] = 0.f;
    }
    __syncwarp();
    add_weighted_rows(out, weights, value_tile, size, lane);
  }
  sum = sum_of_eight(sum);
  if (row >= length) return;
  store_plain_row(arguments.result + (sequence + row) * arguments.out_stride + head * size, out, sum > 0.f ? 1.f / sum : 0.f, size, lane);
  if (lane == 0) arguments.lse[(static_cast<std::int64_t>(blockIdx.z) * arguments.heads + head) * length + row] = maximum + logf(sum);
}

// delta (B,H,T) = rowsum(dO·O), one warp per row and head.
template <class T>
__global__ void __launch_bounds__(plain_threads, 1) attention_row_sums_plain(const PlainArguments<T> arguments, float* delta) {
  const std::int64_t unit = (static_cast<std::int64_t>(blockIdx.x) * plain_threads + threadIdx.x) / 32, row = unit / arguments.heads;
  const int head = static_cast<int>(unit % arguments.heads), lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= static_cast<std::int64_t>(arguments.batch) * arguments.length) return;
  const T* out = arguments.out + row * arguments.out_stride + head * arguments.size;
  const T* dout = arguments.dout + row * arguments.dout_stride + head * arguments.size;
  float sum = 0.f;
  for (int d = lane; d < arguments.size; d += 32) sum = fmaf(to_float(out[d]), to_float(dout[d]), sum);
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (lane == 0) delta[(row / arguments.length * arguments.heads + head) * arguments.length + row % arguments.length] = sum;
}

// Probability and score gradient of one pair.
struct PlainPair {
  float p, ds;
};
__device__ __forceinline__ PlainPair plain_pair(const float* query, const float* key, const float* dout, const float* value, int size,
                                                float scale, float lse, float delta, bool seen) {
  if (!seen) return {0.f, 0.f};
  const float p = expf(fmaf(plain_dot(query, key, size), scale, -lse));
  return {p, p * (plain_dot(dout, value, size) - delta)};
}

// dK and dV. Grid: (key tiles, groups, batch). Shared: keys, values, queries, dO, P and dS.
template <class T, int C>
__global__ void __launch_bounds__(plain_threads, 1) attention_backward_keys_plain(const PlainArguments<T> arguments) {
  const int size = arguments.size, length = arguments.length, lane = static_cast<int>(threadIdx.x) % plain_lanes, area = plain_tile * (size + 1);
  const int local = static_cast<int>(threadIdx.x) / plain_lanes, key_first = static_cast<int>(blockIdx.x) * plain_tile;
  const int key = key_first + local, group = static_cast<int>(blockIdx.y), group_heads = arguments.heads / arguments.kv_heads;
  const std::int64_t sequence = static_cast<std::int64_t>(blockIdx.z) * length;
  const T* rows = arguments.qkv + sequence * arguments.qkv_stride;
  float *key_tile = plain_memory, *value_tile = key_tile + area, *query_tile = value_tile + area, *dout_tile = query_tile + area;
  float *p_row = dout_tile + area + local * plain_pitch, *ds_row = p_row + plain_tile * plain_pitch;

  const T* keys = rows + (arguments.heads + group) * size;
  load_plain_tile(key_tile, keys, arguments.qkv_stride, key_first, length, size);
  load_plain_tile(value_tile, keys + arguments.kv_heads * size, arguments.qkv_stride, key_first, length, size);
  float dkey[C] = {}, dvalue[C] = {};
  for (int query_first = key_first; query_first < length; query_first += plain_tile) {
    const bool sees = query_first + local < length && first_key_of(arguments, sequence, query_first + local) < key_first + plain_tile;
    if (!__syncthreads_or(sees)) continue;
    for (int head = group * group_heads; head < (group + 1) * group_heads; ++head) {
      __syncthreads();
      load_plain_tile(query_tile, rows + head * size, arguments.qkv_stride, query_first, length, size);
      load_plain_tile(dout_tile, arguments.dout + sequence * arguments.dout_stride + head * size, arguments.dout_stride, query_first, length,
                      size);
      __syncthreads();
      const std::int64_t statistics = (static_cast<std::int64_t>(blockIdx.z) * arguments.heads + head) * length;
#pragma unroll
      for (int i = 0; i < plain_tile / plain_lanes; ++i) {
        const int other = lane + i * plain_lanes, row = query_first + other;
        const bool seen = row < length && key <= row && key >= first_key_of(arguments, sequence, row);
        const PlainPair pair = plain_pair(query_tile + other * (size + 1), key_tile + local * (size + 1), dout_tile + other * (size + 1),
                                          value_tile + local * (size + 1), size, arguments.scale,
                                          seen ? arguments.lse_in[statistics + row] : 0.f, seen ? arguments.delta[statistics + row] : 0.f, seen);
        p_row[other] = pair.p, ds_row[other] = pair.ds;
      }
      __syncwarp();
      add_weighted_rows(dvalue, p_row, dout_tile, size, lane);
      add_weighted_rows(dkey, ds_row, query_tile, size, lane);
    }
  }
  if (key >= length) return;
  T* target = arguments.dqkv + (sequence + key) * arguments.dqkv_stride + (arguments.heads + group) * size;
  store_plain_row(target, dkey, arguments.scale, size, lane);
  store_plain_row(target + arguments.kv_heads * size, dvalue, 1.f, size, lane);
}

// dQ. Grid: (query tiles, heads, batch). Shared as for dK and dV.
template <class T, int C>
__global__ void __launch_bounds__(plain_threads, 1) attention_backward_queries_plain(const PlainArguments<T> arguments) {
  const int size = arguments.size, length = arguments.length, lane = static_cast<int>(threadIdx.x) % plain_lanes, area = plain_tile * (size + 1);
  const int local = static_cast<int>(threadIdx.x) / plain_lanes, query_first = static_cast<int>(blockIdx.x) * plain_tile;
  const int row = query_first + local, head = static_cast<int>(blockIdx.y), group = head / (arguments.heads / arguments.kv_heads);
  const std::int64_t sequence = static_cast<std::int64_t>(blockIdx.z) * length;
  const T* rows = arguments.qkv + sequence * arguments.qkv_stride;
  const T* keys = rows + (arguments.heads + group) * size;
  float *key_tile = plain_memory, *value_tile = key_tile + area, *query_tile = value_tile + area, *dout_tile = query_tile + area;
  float* ds_row = dout_tile + area + local * plain_pitch;

  load_plain_tile(query_tile, rows + head * size, arguments.qkv_stride, query_first, length, size);
  load_plain_tile(dout_tile, arguments.dout + sequence * arguments.dout_stride + head * size, arguments.dout_stride, query_first, length, size);
  const int first_key = first_key_of(arguments, sequence, row);
  const std::int64_t statistics = (static_cast<std::int64_t>(blockIdx.z) * arguments.heads + head) * length;
  const float lse = row < length ? arguments.lse_in[statistics + row] : 0.f, delta = row < length ? arguments.delta[statistics + row] : 0.f;
  float dquery[C] = {};
  const int key_last = min(query_first + plain_tile, length) - 1;
  for (int key_first = 0; key_first <= key_last; key_first += plain_tile) {
    if (!__syncthreads_or(row < length && first_key < key_first + plain_tile)) continue;
    load_plain_tile(key_tile, keys, arguments.qkv_stride, key_first, length, size);
    load_plain_tile(value_tile, keys + arguments.kv_heads * size, arguments.qkv_stride, key_first, length, size);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < plain_tile / plain_lanes; ++i) {
      const int other = lane + i * plain_lanes, key = key_first + other;
      const bool seen = row < length && key <= row && key >= first_key;
      ds_row[other] = plain_pair(query_tile + local * (size + 1), key_tile + other * (size + 1), dout_tile + local * (size + 1),
                                 value_tile + other * (size + 1), size, arguments.scale, lse, delta, seen)
                          .ds;
    }
    __syncwarp();
    add_weighted_rows(dquery, ds_row, key_tile, size, lane);
  }
  if (row < length)
    store_plain_row(arguments.dqkv + (sequence + row) * arguments.dqkv_stride + head * size, dquery, arguments.scale, size, lane);
}

}  // namespace tinyllama::cuda
