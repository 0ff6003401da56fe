#include "native/device/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "native/core/error.h"
#include "native/device/cpu/gemm.h"

namespace tinyllama {
namespace {

constexpr std::int64_t key_block = 64, backward_query_block = 64;

void check(const Tensor& qkv, const Tensor& out, const AttentionShape& shape) {
  require(shape.kv_heads >= 1 && shape.heads % shape.kv_heads == 0, "attention: the query heads must be a multiple of the key/value heads");
  require(qkv.rows == shape.batch * shape.length && qkv.columns == (shape.heads + 2 * shape.kv_heads) * shape.head_size &&
              out.rows == qkv.rows && out.columns == shape.heads * shape.head_size,
          "attention: the matrices do not have the shape's sizes");
}

// A left operand whose rows lie in place, or whose columns do.
struct Left {
  const float* data;
  std::int64_t stride;
  bool transposed;
};

void multiply(const Kernels& kernels, std::int64_t rows, std::int64_t columns, std::int64_t depth, const Left& left, const float* right,
              float* out, std::int64_t out_stride, bool accumulate) {
  kernels.gemm_block({.rows = rows,
                      .columns = columns,
                      .depth = depth,
                      .left = left.data,
                      .left_stride = left.stride,
                      .left_group = left.transposed ? kernels.tile_rows : kernels.tile_rows * left.stride,
                      .left_transposed = left.transposed,
                      .right = right,
                      .right_panel = depth * kernels.tile_columns,
                      .out = out,
                      .out_stride = out_stride,
                      .accumulate = accumulate});
}

// Cuts one thread's area into pieces of whole cache lines.
class Pieces {
 public:
  float* take(std::int64_t count) {
    float* piece = base_ ? base_ + used_ : nullptr;
    used_ += round_up(count, 16);
    return piece;
  }
  std::int64_t used() const { return used_; }
  void place(float* base) { base_ = base, used_ = 0; }

 private:
  float* base_ = nullptr;
  std::int64_t used_ = 0;
};

struct ForwardMemory {
  float *keys, *values, *scores, *maxima, *sums;

  void cut(Pieces& pieces, const Kernels& kernels, std::int64_t size, std::int64_t rows, std::int64_t group) {
    keys = pieces.take(size * round_up(key_block, kernels.tile_columns));
    values = pieces.take(key_block * round_up(size, kernels.tile_columns));
    scores = pieces.take(rows * key_block);
    maxima = pieces.take(group * rows);
    sums = pieces.take(group * rows);
  }
};

struct BackwardMemory {
  float *keys_transposed, *values_transposed, *keys, *queries, *douts, *scores, *dscores, *deltas;

  void cut(Pieces& pieces, const Kernels& kernels, std::int64_t size, std::int64_t length) {
    keys_transposed = pieces.take(size * round_up(key_block, kernels.tile_columns));
    values_transposed = pieces.take(size * round_up(key_block, kernels.tile_columns));
    keys = pieces.take(key_block * round_up(size, kernels.tile_columns));
    queries = pieces.take(backward_query_block * round_up(size, kernels.tile_columns));
    douts = pieces.take(backward_query_block * round_up(size, kernels.tile_columns));
    scores = pieces.take(backward_query_block * key_block);
    dscores = pieces.take(backward_query_block * key_block);
    deltas = pieces.take(length);
  }
};

template <class Memory, class... Sizes>
Memory cut(CpuContext& context, int thread, Sizes... sizes) {
  Memory memory;
  Pieces pieces;
  memory.cut(pieces, context.kernels, sizes...);
  float* base = context.thread[static_cast<std::size_t>(thread)].request(pieces.used());
  pieces.place(base);
  memory.cut(pieces, context.kernels, sizes...);
  return memory;
}

// What queries see of the keys before them, by the first keys of their sequence. Without first keys: all of them.
class Visible {
 public:
  Visible(const std::int32_t* first_keys, std::int64_t batch, std::int64_t length)
      : first_keys_(first_keys ? first_keys + batch * length : nullptr) {}

  // Where the first key block lies that one of the queries begin to begin + rows - 1 sees a key of.
  std::int64_t first_block(std::int64_t begin, std::int64_t rows) const {
    return first_keys_ ? *std::min_element(first_keys_ + begin, first_keys_ + begin + rows) / key_block * key_block : 0;
  }
  // How many of the keys from `first_key` on, up to `most`, lie before all that the query sees.
  std::int64_t hidden(std::int64_t query, std::int64_t first_key, std::int64_t most) const {
    return first_keys_ ? std::clamp(first_keys_[query] - first_key, std::int64_t{0}, most) : 0;
  }

 private:
  const std::int32_t* first_keys_;
};

}  // namespace

void attention_forward(CpuContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                       const std::int32_t* first_keys) {
  check(qkv, out, shape);
  const Kernels& kernels = context.kernels;
  const std::int64_t size = shape.head_size, length = shape.length, group = shape.heads / shape.kv_heads, columns = kernels.tile_columns;
  const float scale = 1.f / std::sqrt(static_cast<float>(size));
  // One item: a block of queries, for all heads that share a key/value head, so that its keys and values are packed once.
  const std::int64_t query_block = std::clamp(round_up(192 / group, 16), std::int64_t{32}, std::int64_t{128});
  const std::int64_t query_blocks = divide_up(length, query_block), streams = shape.batch * shape.kv_heads;
  context.pool.parallel_for(query_blocks * streams, [&](std::int64_t item, int thread) {
    const auto memory = cut<ForwardMemory>(context, thread, size, query_block, group);
    // The last queries see the most keys: longest items first.
    const std::int64_t first_query = (query_blocks - 1 - item / streams) * query_block;
    const std::int64_t end_query = std::min(first_query + query_block, length);
    const std::int64_t batch = item % streams / shape.kv_heads, kv_head = item % shape.kv_heads;
    const float* sequence = qkv.f32() + batch * length * qkv.stride;
    std::fill_n(memory.maxima, group * query_block, -std::numeric_limits<float>::infinity());
    std::fill_n(memory.sums, group * query_block, 0.f);
    const Visible visibility(first_keys, batch, length);
    const std::int64_t start = visibility.first_block(first_query, end_query - first_query);

    for (std::int64_t first_key = start; first_key < end_query; first_key += key_block) {
      const std::int64_t keys = std::min(key_block, end_query - first_key);
      const float* key = sequence + first_key * qkv.stride + (shape.heads + kv_head) * size;
      kernels.pack_right_transposed(memory.keys, size * columns, key, qkv.stride, size, keys);
      kernels.pack_right(memory.values, keys * columns, key + shape.kv_heads * size, qkv.stride, keys, size);
      const std::int64_t begin = std::max(first_query, first_key), rows = end_query - begin;
      for (std::int64_t member = 0; member < group; ++member) {
        const std::int64_t head = kv_head * group + member;
        float* result = out.f32() + (batch * length + begin) * out.stride + head * size;
        multiply(kernels, rows, keys, size, {sequence + begin * qkv.stride + head * size, qkv.stride, false}, memory.keys, memory.scores,
                 key_block, false);
        for (std::int64_t row = 0; row < rows; ++row) {
          const std::int64_t state = member * query_block + begin + row - first_query;
          const std::int64_t visible = std::min(keys, begin + row - first_key + 1);
          const std::int64_t hidden = visibility.hidden(begin + row, first_key, visible);
          float* scores = memory.scores + row * key_block;
          std::fill_n(scores, hidden, 0.f);
          if (hidden == visible) {  // a softmax of nothing
            std::fill(scores + hidden, scores + keys, 0.f);
            continue;
          }
          const float correction = kernels.softmax_row(scores + hidden, visible - hidden, keys - hidden, scale, memory.maxima + state,
                                                       memory.sums + state);
          if (first_key > start && correction != 1.f) kernels.scale_row(result + row * out.stride, correction, size);
        }
        multiply(kernels, rows, size, keys, {memory.scores, key_block, false}, memory.values, result, out.stride, first_key > start);
      }
    }
    for (std::int64_t member = 0; member < group; ++member) {
      const std::int64_t head = kv_head * group + member;
      for (std::int64_t query = first_query; query < end_query; ++query) {
        const std::int64_t state = member * query_block + query - first_query;
        kernels.scale_row(out.f32() + (batch * length + query) * out.stride + head * size, 1.f / memory.sums[state], size);
        lse[(batch * shape.heads + head) * length + query] = memory.maxima[state] + std::log(memory.sums[state]);
      }
    }
  });
}

void attention_backward(CpuContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out, const float* lse,
                        const AttentionShape& shape, const std::int32_t* first_keys) {
  check(qkv, out, shape);
  check(dqkv, dout, shape);
  const Kernels& kernels = context.kernels;
  const std::int64_t size = shape.head_size, length = shape.length, group = shape.heads / shape.kv_heads, columns = kernels.tile_columns;
  const float scale = 1.f / std::sqrt(static_cast<float>(size));
  const std::int64_t share = length * size;
  float* shares = group > 1 ? context.tiles.request(2 * shape.batch * shape.heads * share) : nullptr;

  context.pool.parallel_for(shape.batch * shape.heads, [&](std::int64_t item, int thread) {
    const auto memory = cut<BackwardMemory>(context, thread, size, length);
    const std::int64_t batch = item / shape.heads, head = item % shape.heads, kv_head = head / group;
    const std::int64_t key_at = (shape.heads + kv_head) * size, value_at = key_at + shape.kv_heads * size;
    const float* sequence = qkv.f32() + batch * length * qkv.stride;
    const float* upstream = dout.f32() + batch * length * dout.stride + head * size;
    float* gradient = dqkv.f32() + batch * length * dqkv.stride;
    const float* log_sums = lse + item * length;
    for (std::int64_t query = 0; query < length; ++query) {
      const float* result = out.f32() + (batch * length + query) * out.stride + head * size;
      memory.deltas[query] = kernels.dot(upstream + query * dout.stride, result, size);
    }
    float* dkeys = shares ? shares + 2 * item * share : gradient + key_at;
    float* dvalues = shares ? dkeys + share : gradient + value_at;
    const std::int64_t stride = shares ? size : dqkv.stride;
    const Visible visibility(first_keys, batch, length);

    for (std::int64_t first_key = 0; first_key < length; first_key += key_block) {
      const std::int64_t keys = std::min(key_block, length - first_key);
      const float* key = sequence + first_key * qkv.stride + key_at;
      kernels.pack_right_transposed(memory.keys_transposed, size * columns, key, qkv.stride, size, keys);
      kernels.pack_right_transposed(memory.values_transposed, size * columns, key + shape.kv_heads * size, qkv.stride, size, keys);
      kernels.pack_right(memory.keys, keys * columns, key, qkv.stride, keys, size);
      for (std::int64_t begin = first_key; begin < length; begin += backward_query_block) {
        const std::int64_t rows = std::min(backward_query_block, length - begin), start = visibility.first_block(begin, rows);
        if (first_key < start) continue;  // never the first block of queries: it holds these keys' own positions
        const float* query = sequence + begin * qkv.stride + head * size;
        const float* above = upstream + begin * dout.stride;
        multiply(kernels, rows, keys, size, {query, qkv.stride, false}, memory.keys_transposed, memory.scores, key_block, false);
        multiply(kernels, rows, keys, size, {above, dout.stride, false}, memory.values_transposed, memory.dscores, key_block, false);
        for (std::int64_t row = 0; row < rows; ++row) {
          const std::int64_t visible = std::min(keys, begin + row - first_key + 1);
          const std::int64_t hidden = visibility.hidden(begin + row, first_key, visible);
          float* scores = memory.scores + row * key_block;
          float* dscores = memory.dscores + row * key_block;
          std::fill_n(scores, hidden, 0.f);
          std::fill_n(dscores, hidden, 0.f);
          kernels.softmax_row_backward(scores + hidden, dscores + hidden, visible - hidden, keys - hidden, scale,
                                       log_sums[begin + row], memory.deltas[begin + row]);
        }
        kernels.pack_right(memory.queries, rows * columns, query, qkv.stride, rows, size);
        kernels.pack_right(memory.douts, rows * columns, above, dout.stride, rows, size);
        const bool later = begin > first_key;
        multiply(kernels, keys, size, rows, {memory.scores, key_block, true}, memory.douts, dvalues + first_key * stride, stride, later);
        multiply(kernels, keys, size, rows, {memory.dscores, key_block, true}, memory.queries, dkeys + first_key * stride, stride, later);
        multiply(kernels, rows, size, keys, {memory.dscores, key_block, false}, memory.keys, gradient + begin * dqkv.stride + head * size,
                 dqkv.stride, first_key > start);
      }
    }
  });
  if (!shares) return;

  context.pool.parallel_for(shape.batch * length, [&](std::int64_t row, int) {
    const std::int64_t batch = row / length, position = row % length;
    for (std::int64_t part = 0; part < 2 * shape.kv_heads; ++part) {
      const std::int64_t kv_head = part % shape.kv_heads, value = part / shape.kv_heads;
      float* to = dqkv.f32() + row * dqkv.stride + (shape.heads + part) * size;
      const float* from = shares + (2 * (batch * shape.heads + kv_head * group) + value) * share + position * size;
      std::memcpy(to, from, static_cast<std::size_t>(size) * sizeof(float));
      for (std::int64_t member = 1; member < group; ++member) kernels.add(to, from + 2 * member * share, size);
    }
  });
}

}  // namespace tinyllama
