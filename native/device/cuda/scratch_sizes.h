// How much memory the CUDA operations take for themselves: the arithmetic behind their allocations, and behind forecasts made where there is no GPU.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "native/core/tensor.h"
#include "native/device/device.h"

namespace tinyllama::cuda {

// Of cuBLASLt's products. What NVIDIA advises for Hopper is 32 MiB; the parts of a K split in four of the largest fp32 weight gradient but the head's
// take 64.
constexpr std::size_t matmul_workspace_bytes = std::size_t{64} << 20;

// Logits that the loss holds at once.
struct LossChunks {
  std::int64_t stride;  // of the logits, in elements: rows start on 16 bytes
  std::int64_t rows;    // of all chunks but perhaps the last
  std::size_t bytes;

  // Fewer rows leave the products too few tiles to fill the GPU; more only cost memory (8192 x 32000 in bf16: 524 MB).
  static constexpr std::int64_t most_rows = 8192, fewest_rows = 4096;
  static constexpr std::int64_t most_bytes = std::int64_t{512} << 20;
  static constexpr std::int64_t row_step = 128;  // the products' tiles

  // Equal chunks, so that the products have one shape, or two.
  LossChunks(std::int64_t all_rows, std::int64_t vocabulary, DataType type) {
    const std::int64_t element = bytes_of(type), vector = 16 / element;
    stride = (vocabulary + vector - 1) / vector * vector;
    const std::int64_t limit = std::clamp(most_bytes / std::max<std::int64_t>(stride * element, 1) / row_step * row_step, fewest_rows, most_rows);
    const std::int64_t chunks = std::max<std::int64_t>((all_rows + limit - 1) / limit, 1);
    rows = std::min(((all_rows + chunks - 1) / chunks + row_step - 1) / row_step * row_step, all_rows);
    bytes = static_cast<std::size_t>(rows * stride * element);
  }
};

// Of the loss, and of the log probabilities, whose logits are fp32.
inline std::size_t linear_loss_scratch(std::int64_t rows, std::int64_t vocabulary, DataType type) {
  return std::max(LossChunks(rows, vocabulary, type).bytes, LossChunks(rows, vocabulary, DataType::f32).bytes);
}

// The scratch memory of attention's backward pass on tensor cores, one piece after the other.
struct BackwardScratch {
  std::size_t dq_sums, statistics, bounds, turns, bytes, turns_bytes;

  BackwardScratch(const AttentionShape& shape, int query_rows, int size, int turns_per_tile) {
    constexpr std::size_t pair = 8;  // two floats, or two ints
    const auto up = [](std::size_t value) { return (value + 255) / 256 * 256; };
    const auto heads = static_cast<std::size_t>(shape.batch * shape.heads);
    const auto tiles = static_cast<std::size_t>((shape.length + query_rows - 1) / query_rows);
    turns_bytes = up((1 + heads * tiles * static_cast<std::size_t>(turns_per_tile)) * sizeof(std::int32_t));
    turns = 0;
    bounds = turns + turns_bytes;
    statistics = bounds + up(static_cast<std::size_t>(shape.batch) * tiles * pair);
    dq_sums = statistics + up(heads * tiles * static_cast<std::size_t>(query_rows) * pair);
    bytes = dq_sums + heads * tiles * static_cast<std::size_t>(query_rows * size) * sizeof(float);
  }
};

// Of the pass as attention.cu chooses it. The kernels differ in their turns, one int of a tile for each of up to 8 warps: the most is taken.
inline std::size_t attention_backward_scratch(const AttentionShape& shape, DataType type) {
  const bool tensor_cores = type == DataType::bf16 && (shape.head_size == 64 || shape.head_size == 128);
  if (!tensor_cores) return static_cast<std::size_t>(shape.batch * shape.heads * shape.length) * sizeof(float);
  constexpr int query_rows = 64, most_turns = 8;
  return BackwardScratch(shape, query_rows, static_cast<int>(shape.head_size), most_turns).bytes;
}

// What a device holds for itself while a model trains: scratch memory, which all operations share, and the workspace of products. Norms and embedding
// take less scratch than the loss as soon as the vocabulary is twice as large as the model is wide.
inline std::size_t training_overhead(const AttentionShape& shape, std::int64_t vocabulary, DataType type) {
  return std::max(linear_loss_scratch(shape.batch * shape.length, vocabulary, type), attention_backward_scratch(shape, type)) + matmul_workspace_bytes;
}

}  // namespace tinyllama::cuda
