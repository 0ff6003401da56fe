// Logits are computed transposed, (vocabulary, rows): the weight is then the operand read in place, and only the few rows of hidden states
// are packed. The vocabulary is cut into blocks whose tile of logits fits the second-level cache, and each block's softmax is taken there
// while it is warm, against the block's own maximum; one factor per block and row, exp(block maximum - log sum), corrects it afterwards
// (online softmax, Milakov & Gimelshein 2018). The backward pass reads each tile once for both of its products.
#include "native/device/cpu/linear_loss.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "native/core/error.h"
#include "native/device/cpu/gemm.h"

namespace tinyllama {
namespace {

// Rows of the weight whose logits are handled together, and rows of hidden states per chunk.
constexpr std::int64_t vocabulary_block = 96, chunk_rows = 480;
// Elements of one chunk's logits: 64 MiB.
constexpr std::int64_t logit_elements = std::int64_t{1} << 24;
// Each group of vocabulary blocks sums its own share of dhidden, in order; the shares are added in order. A fixed number, for equal results
// on any number of threads.
constexpr std::int64_t vocabulary_groups = 16;

enum Part { forward_product, weight_product, hidden_product, other_work, parts };

// Divides time among the products and the rest, when asked to. The time of a loop on all threads is divided as the threads spent theirs, so
// that waiting for the last thread counts.
class Stopwatch {
 public:
  Stopwatch(LinearLossSeconds* seconds, int threads) : seconds_(seconds), threads_(static_cast<std::size_t>(seconds ? threads : 0)) {}

  void open() {
    if (seconds_) opened_ = now();
  }
  // One thread's work on one item: from begin(), the time up to each lap() is the part's.
  void begin(int thread) {
    if (seconds_) threads_[static_cast<std::size_t>(thread)].last = now();
  }
  void lap(int thread, Part part) {
    if (!seconds_) return;
    Thread& own = threads_[static_cast<std::size_t>(thread)];
    const double time = now();
    own.spent[part] += time - own.last;
    own.last = time;
  }
  // Ends what open() began.
  void close() {
    if (!seconds_) return;
    const double elapsed = now() - opened_;
    std::array<double, parts> spent{};
    double total = 0;
    for (Thread& thread : threads_) {
      for (std::size_t part = 0; part < parts; ++part) {
        spent[part] += thread.spent[part];
        total += thread.spent[part];
      }
      thread.spent = {};
    }
    seconds_->forward += elapsed * spent[forward_product] / total;
    seconds_->weight_gradient += elapsed * spent[weight_product] / total;
    seconds_->input_gradient += elapsed * spent[hidden_product] / total;
  }

 private:
  struct alignas(64) Thread {
    double last = 0;
    std::array<double, parts> spent{};
  };
  static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

  LinearLossSeconds* seconds_;
  std::vector<Thread> threads_;
  double opened_ = 0;
};

// The rows that are scored, chunk by chunk, with what the softmax leaves per (block, row) and per row.
class Chunk {
 public:
  Chunk(CpuContext& context, const Tensor& hidden, const Tensor& weight, const std::int32_t* targets, bool keep_logits,
        LinearLossSeconds* seconds)
      : watch(seconds, context.pool.size()),
        context_(context),
        weight_(weight),
        keep_(keep_logits),
        blocks_(divide_up(weight.rows, vocabulary_block)) {
    require(hidden.columns == weight.columns, "linear loss: hidden states are " + std::to_string(hidden.columns) + " wide, the weight " +
                                                  std::to_string(weight.columns));
    require(hidden.type == DataType::f32 && weight.type == DataType::f32, "linear loss: the CPU backend computes in fp32 only");
    for (std::int64_t row = 0; row < hidden.rows; ++row) {
      if (targets[row] < 0) continue;
      require(targets[row] < weight.rows, "linear loss: target " + std::to_string(targets[row]) + " of row " + std::to_string(row) +
                                              " is outside the vocabulary of " + std::to_string(weight.rows));
      scored_.push_back(row);
    }
    const std::int64_t most = std::clamp(logit_elements / weight.rows / 48 * 48, std::int64_t{48}, chunk_rows);
    const auto count = static_cast<std::int64_t>(scored_.size());
    capacity = count == 0 ? 0 : round_up(divide_up(count, divide_up(count, most)), 8);
    // An odd number of cache lines per row, so that a column's elements spread over all sets of the caches.
    stride = round_up(capacity, 16);
    if (stride / 16 % 2 == 0) stride += 16;
    columns_ = capacity == 0 ? 0 : round_up(capacity, context.kernels.tile_columns);
    if (keep_) logits_ = context.tiles.request(weight.rows * stride);
    statistics_ = context.statistics.request((2 * blocks_ + 4) * stride);
    rows_ = matrix(context.rows.request(capacity * hidden.columns), capacity, hidden.columns);
    panels_ = context.panels.request(weight.columns * columns_);
  }

  std::int64_t chunks() const { return capacity == 0 ? 0 : divide_up(static_cast<std::int64_t>(scored_.size()), capacity); }
  std::int64_t blocks() const { return blocks_; }
  std::int64_t row(std::int64_t column) const { return scored_[static_cast<std::size_t>(first_ + column)]; }
  const Tensor& rows() const { return rows_; }
  float* tile(std::int64_t block) const { return logits_ + block * vocabulary_block * stride; }
  std::int64_t tile_rows(std::int64_t block) const { return std::min(vocabulary_block, weight_.rows - block * vocabulary_block); }
  // Per (block, row): the maximum; after normalize(), exp(maximum - overall maximum).
  float* maxima(std::int64_t block) const { return statistics_ + block * stride; }
  float* top() const { return statistics_ + 2 * blocks_ * stride; }
  float* total() const { return top() + stride; }
  float* target_logit() const { return top() + 2 * stride; }
  float* factors() const { return top() + 3 * stride; }

  // Gathers the chunk's rows and computes the softmax statistics of all blocks. `inspect(block, tile)` sees each tile of logits first.
  template <class Inspect>
  void forward(std::int64_t index, const Tensor& hidden, const std::int32_t* targets, Inspect&& inspect) {
    first_ = index * capacity;
    count = std::min(capacity, static_cast<std::int64_t>(scored_.size()) - first_);
    rows_.rows = count;
    for (std::int64_t column = 0; column < count; ++column) {
      std::memcpy(rows_.f32() + column * rows_.stride, hidden.f32() + row(column) * hidden.stride,
                  static_cast<std::size_t>(hidden.columns) * sizeof(float));
    }
    watch.open();
    watch.begin(0);
    const PackedRight right = pack_right(context_, panels_, rows_, Transpose::yes, 0, count);
    watch.lap(0, forward_product);
    watch.close();
    watch.open();
    context_.pool.parallel_for(blocks_, [&](std::int64_t block, int thread) {
      watch.begin(thread);
      float* out = keep_ ? tile(block) : context_.thread[static_cast<std::size_t>(thread)].request(vocabulary_block * stride);
      multiply(block, right, out);
      watch.lap(thread, forward_product);
      const std::int64_t begin = block * vocabulary_block, end = begin + tile_rows(block);
      for (std::int64_t column = 0; column < count; ++column) {
        const std::int64_t target = targets[row(column)];
        if (target >= begin && target < end) target_logit()[column] = out[(target - begin) * stride + column];
      }
      const Kernels& kernels = context_.kernels;
      kernels.column_maxima(maxima(block), out, stride, end - begin, count);
      inspect(block, out);
      kernels.column_exponentials(sums(block), out, stride, maxima(block), nullptr, end - begin, count, keep_);
      watch.lap(thread, other_work);
    });
    watch.close();
  }

  // Joins the blocks' statistics: top(), total() and, in place of the maxima, their exponentials.
  void normalize() {
    constexpr std::int64_t width = 32;
    context_.pool.parallel_for(divide_up(count, width), [&](std::int64_t slice, int) {
      const std::int64_t at = slice * width, columns = std::min(width, count - at);
      context_.kernels.column_maxima(top() + at, maxima(0) + at, stride, blocks_, columns);
      context_.kernels.column_exponentials(total() + at, maxima(0) + at, stride, top() + at, sums(0) + at, blocks_, columns, true);
    });
  }

  std::int64_t capacity = 0, stride = 0, count = 0;
  Stopwatch watch;

 private:
  float* sums(std::int64_t block) const { return statistics_ + (blocks_ + block) * stride; }

  void multiply(std::int64_t index, const PackedRight& right, float* out) const {
    const Kernels& kernels = context_.kernels;
    const std::int64_t depth = weight_.columns, step = depth_step(depth);
    GemmBlock block{};
    block.rows = tile_rows(index);
    block.columns = count;
    block.left_stride = weight_.stride;
    block.left_group = kernels.tile_rows * weight_.stride;
    block.out = out;
    block.out_stride = stride;
    for (std::int64_t k = 0; k < depth; k += step) {
      block.depth = std::min(step, depth - k);
      block.left = weight_.f32() + index * vocabulary_block * weight_.stride + k;
      block.right = right.run(k, block.depth, 0);
      block.right_panel = block.depth * kernels.tile_columns;
      block.accumulate = k > 0;
      kernels.gemm_block(block);
    }
  }

  CpuContext& context_;
  const Tensor weight_;
  const bool keep_;
  const std::int64_t blocks_;
  std::vector<std::int64_t> scored_;
  std::int64_t first_ = 0, columns_ = 0;
  float *logits_ = nullptr, *statistics_ = nullptr, *panels_ = nullptr;
  Tensor rows_;
};

// dweight's rows of one block: += tile · rows.
void add_weight_gradient(const Kernels& kernels, const Chunk& chunk, std::int64_t index, const PackedRight& rows, const Tensor& dweight) {
  const std::int64_t step = depth_step(chunk.count);
  GemmBlock block{};
  block.rows = chunk.tile_rows(index);
  block.columns = dweight.columns;
  block.left_stride = chunk.stride;
  block.left_group = kernels.tile_rows * chunk.stride;
  block.out = dweight.f32() + index * vocabulary_block * dweight.stride;
  block.out_stride = dweight.stride;
  block.accumulate = true;
  for (std::int64_t k = 0; k < chunk.count; k += step) {
    block.depth = std::min(step, chunk.count - k);
    block.left = chunk.tile(index) + k;
    block.right = rows.run(k, block.depth, 0);
    block.right_panel = block.depth * kernels.tile_columns;
    kernels.gemm_block(block);
  }
}

// share(rows, width) (+)= tileᵀ · weight block, the tile packed in `groups`.
void add_hidden_gradient(const Kernels& kernels, const Chunk& chunk, std::int64_t index, const Tensor& weight, float* panels,
                         const float* groups, float* share, bool accumulate) {
  const std::int64_t depth = chunk.tile_rows(index), panel = depth * kernels.tile_columns;
  kernels.pack_right(panels, panel, weight.f32() + index * vocabulary_block * weight.stride, weight.stride, depth, weight.columns);
  GemmBlock block{};
  block.rows = chunk.count;
  block.columns = weight.columns;
  block.depth = depth;
  block.left = groups;
  block.left_stride = kernels.tile_rows;
  block.left_group = kernels.tile_rows * depth;
  block.left_transposed = true;
  block.right = panels;
  block.right_panel = panel;
  block.out = share;
  block.out_stride = weight.columns;
  block.accumulate = accumulate;
  kernels.gemm_block(block);
}

}  // namespace

void linear_cross_entropy(CpuContext& context, float* losses, const Tensor& dhidden, const Tensor& dweight, const Tensor& hidden,
                          const Tensor& weight, const std::int32_t* targets, float scale, LinearLossSeconds* seconds) {
  const Kernels& kernels = context.kernels;
  const std::int64_t width = weight.columns;
  for (std::int64_t row = 0; row < hidden.rows; ++row) {
    if (targets[row] >= 0) continue;
    losses[row] = 0.f;
    std::fill_n(dhidden.f32() + row * dhidden.stride, width, 0.f);
  }
  Chunk chunk(context, hidden, weight, targets, true, seconds);
  const std::int64_t groups = std::min(vocabulary_groups, chunk.blocks());
  float* shares = context.shares.request(groups * chunk.capacity * width);
  float* panels = context.row_panels.request(chunk.capacity * round_up(width, kernels.tile_columns));

  for (std::int64_t index = 0; index < chunk.chunks(); ++index) {
    chunk.forward(index, hidden, targets, [](std::int64_t, const float*) {});
    chunk.normalize();
    for (std::int64_t column = 0; column < chunk.count; ++column) {
      const double total = static_cast<double>(chunk.total()[column]);
      losses[chunk.row(column)] = static_cast<float>(static_cast<double>(chunk.top()[column]) + std::log(total) -
                                                     static_cast<double>(chunk.target_logit()[column]));
      chunk.factors()[column] = static_cast<float>(static_cast<double>(scale) / total);
    }
    Stopwatch& watch = chunk.watch;
    watch.open();
    watch.begin(0);
    const PackedRight rows = pack_right(context, panels, chunk.rows(), Transpose::no, 0, width);
    watch.lap(0, weight_product);
    watch.close();

    watch.open();
    context.pool.parallel_for(groups, [&](std::int64_t group, int thread) {
      const std::int64_t packed_weight = vocabulary_block * round_up(width, kernels.tile_columns);
      float* weight_panels = context.thread[static_cast<std::size_t>(thread)].request(
          packed_weight + vocabulary_block * round_up(chunk.count, kernels.tile_rows));
      float* packed_tile = weight_panels + packed_weight;
      float* share = shares + group * chunk.capacity * width;
      const std::int64_t begin = group * chunk.blocks() / groups, end = (group + 1) * chunk.blocks() / groups;
      for (std::int64_t block = begin; block < end; ++block) {
        watch.begin(thread);
        // From exponentials to the gradient of the logits: softmax * scale, less scale at the target.
        const std::int64_t depth = chunk.tile_rows(block);
        kernels.scale_columns(chunk.maxima(block), chunk.stride, chunk.factors(), 1, chunk.count);
        kernels.scale_columns_and_pack(packed_tile, chunk.tile(block), chunk.stride, chunk.maxima(block), depth, chunk.count);
        for (std::int64_t column = 0; column < chunk.count; ++column) {
          const std::int64_t target = targets[chunk.row(column)] - block * vocabulary_block;
          if (target < 0 || target >= depth) continue;
          const std::int64_t group_at = column / kernels.tile_rows * depth + target;
          chunk.tile(block)[target * chunk.stride + column] -= scale;
          packed_tile[group_at * kernels.tile_rows + column % kernels.tile_rows] -= scale;
        }
        // The packing is the product's, and is not told from the scaling.
        watch.lap(thread, hidden_product);
        add_weight_gradient(kernels, chunk, block, rows, dweight);
        watch.lap(thread, weight_product);
        add_hidden_gradient(kernels, chunk, block, weight, weight_panels, packed_tile, share, block > begin);
        watch.lap(thread, hidden_product);
      }
    });
    watch.close();

    watch.open();
    context.pool.parallel_for(chunk.count, [&](std::int64_t column, int thread) {
      watch.begin(thread);
      float* out = dhidden.f32() + chunk.row(column) * dhidden.stride;
      std::memcpy(out, shares + column * width, static_cast<std::size_t>(width) * sizeof(float));
      for (std::int64_t group = 1; group < groups; ++group) kernels.add(out, shares + (group * chunk.capacity + column) * width, width);
      watch.lap(thread, hidden_product);
    });
    watch.close();
  }
}

void linear_log_probability(CpuContext& context, float* log_probabilities, std::uint8_t* greedy, const Tensor& hidden, const Tensor& weight,
                            const std::int32_t* targets) {
  std::fill_n(log_probabilities, hidden.rows, 0.f);
  std::fill_n(greedy, hidden.rows, std::uint8_t{0});
  Chunk chunk(context, hidden, weight, targets, false, nullptr);
  // Whether the target is the first largest of its own block.
  std::vector<std::uint8_t> leads(static_cast<std::size_t>(chunk.capacity));
  for (std::int64_t index = 0; index < chunk.chunks(); ++index) {
    chunk.forward(index, hidden, targets, [&](std::int64_t block, const float* tile) {
      for (std::int64_t column = 0; column < chunk.count; ++column) {
        const std::int64_t target = targets[chunk.row(column)] - block * vocabulary_block;
        if (target < 0 || target >= chunk.tile_rows(block)) continue;
        const float logit = tile[target * chunk.stride + column];
        bool first = logit == chunk.maxima(block)[column];
        for (std::int64_t row = 0; row < target && first; ++row) first = tile[row * chunk.stride + column] < logit;
        leads[static_cast<std::size_t>(column)] = first;
      }
    });
    for (std::int64_t column = 0; column < chunk.count; ++column) {
      const float logit = chunk.target_logit()[column];
      const std::int64_t home = targets[chunk.row(column)] / vocabulary_block;
      bool first = leads[static_cast<std::size_t>(column)] != 0;
      for (std::int64_t block = 0; block < chunk.blocks() && first; ++block) {
        const float maximum = chunk.maxima(block)[column];
        first = block < home ? maximum < logit : maximum <= logit;
      }
      greedy[chunk.row(column)] = first;
    }
    chunk.normalize();
    for (std::int64_t column = 0; column < chunk.count; ++column) {
      const double log_sum = static_cast<double>(chunk.top()[column]) + std::log(static_cast<double>(chunk.total()[column]));
      log_probabilities[chunk.row(column)] = static_cast<float>(static_cast<double>(chunk.target_logit()[column]) - log_sum);
    }
  }
}

}  // namespace tinyllama
