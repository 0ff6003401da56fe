// While a tile of logits is warm, it becomes exponentials, exp(logit - reference), and is multiplied with its rows of the weight at once,
// as attention multiplies with its values (Dao et al. 2022, "FlashAttention"): the gradient of the hidden states is that sum over the whole
// vocabulary times one factor per row, scale / total, less scale times the target's row. The exponentials are kept, and multiplied with the
// hidden states for the gradient of the weight once the totals are known; the same factors then go to the hidden states, not to the tiles.
//
// The reference of a row is its target's logit, so that no maximum is searched and the loss is the logarithm of the total. Where the target
// is so unlikely that the exponentials could overflow, the chunk is done again with that row's largest logit in its place.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "native/device/cpu/gemm.h"
#include "native/device/cpu/linear_loss.h"
#include "native/device/cpu/logit_tiles.h"
#include "native/device/cpu/loss_stopwatch.h"

namespace tinyllama {
namespace {

// Each group of vocabulary blocks sums its own share of dhidden, in order; the shares are added in order. A fixed number, for equal results
// on any number of threads.
constexpr std::int64_t vocabulary_groups = 16;
// Totals up to this leave room for their products and for the factors scale / total; a loss of 39 is just beyond.
constexpr float largest_total = 1e17f;

// out -= factor * row
void subtract_row(float* out, const float* row, float factor, std::int64_t columns) {
  for (std::int64_t i = 0; i < columns; ++i) out[i] -= factor * row[i];
}

class CrossEntropy {
 public:
  CrossEntropy(CpuContext& context, const Tensor& hidden, const Tensor& weight, const std::int32_t* targets, LinearLossSeconds* seconds)
      : context_(context),
        kernels_(context.kernels),
        hidden_(hidden),
        weight_(weight),
        logits_(context, hidden, weight, targets),
        watch_(seconds, context.pool.size()),
        groups_(std::min(vocabulary_groups, logits_.blocks())) {
    const std::int64_t stride = logits_.stride(), width = weight.columns;
    tiles_ = context.tiles.request(weight.rows * stride);
    shares_ = context.shares.request(groups_ * logits_.capacity() * width);
    panels_ = context.row_panels.request(logits_.capacity() * round_up(width, kernels_.tile_columns));
    reference_ = context.statistics.request((groups_ + 4) * stride);
    target_logit_ = reference_ + stride;
    total_ = target_logit_ + stride;
    factor_ = total_ + stride;
    group_results_ = factor_ + stride;
  }

  void run(float* losses, const Tensor& dhidden, const Tensor& dweight, float scale) {
    for (std::int64_t chunk = 0; chunk < logits_.chunks(); ++chunk) {
      watch_.measure(LossStopwatch::forward_product, [&] { logits_.open(chunk); });
      refer_to_targets();
      sum_exponentials();
      if (refer_to_maxima()) sum_exponentials();
      for (std::int64_t column = 0; column < logits_.columns(); ++column) {
        const auto total = static_cast<double>(total_[column]);
        losses[logits_.row(column)] =
            static_cast<float>(std::log(total) + static_cast<double>(reference_[column]) - static_cast<double>(target_logit_[column]));
        factor_[column] = static_cast<float>(static_cast<double>(scale) / total);
      }
      write_hidden_gradient(dhidden, scale);
      add_weight_gradient(dweight, scale);
    }
  }

 private:
  float* tile(std::int64_t block) const { return tiles_ + block * vocabulary_block * logits_.stride(); }
  float* share(std::int64_t group) const { return shares_ + group * logits_.capacity() * weight_.columns; }
  float* group_result(std::int64_t group) const { return group_results_ + group * logits_.stride(); }

  // body(block, first of its group) for a group's blocks, in order.
  template <class Body>
  void for_each_block(std::int64_t group, Body&& body) const {
    const std::int64_t begin = group * logits_.blocks() / groups_, end = (group + 1) * logits_.blocks() / groups_;
    for (std::int64_t block = begin; block < end; ++block) body(block, block == begin);
  }

  void refer_to_targets() {
    context_.pool.parallel_for(logits_.columns(), [&](std::int64_t column, int) {
      const Tensor& rows = logits_.rows();
      const float* target = weight_.f32() + logits_.target(column) * weight_.stride;
      reference_[column] = target_logit_[column] = kernels_.dot(rows.f32() + column * rows.stride, target, rows.columns);
    });
  }

  // Rows whose total is out of range get their largest logit for a reference. Whether there were any.
  bool refer_to_maxima() {
    const std::int64_t columns = logits_.columns(), stride = logits_.stride();
    // A total that is not a number counts, too, and will be none again.
    const auto outside = [](float total) { return !(total <= largest_total); };
    if (std::none_of(total_, total_ + columns, outside)) return false;
    context_.pool.parallel_for(groups_, [&](std::int64_t group, int thread) {
      float* logits = context_.thread[static_cast<std::size_t>(thread)].request((vocabulary_block + 1) * stride);
      float *maxima = logits + vocabulary_block * stride, *own = group_result(group);
      for_each_block(group, [&](std::int64_t block, bool first) {
        logits_.multiply(block, logits);
        kernels_.column_maxima(first ? own : maxima, logits, stride, logits_.tile_rows(block), columns);
        for (std::int64_t column = 0; !first && column < columns; ++column) own[column] = std::max(own[column], maxima[column]);
      });
    });
    for (std::int64_t column = 0; column < columns; ++column) {
      if (!outside(total_[column])) continue;
      reference_[column] = group_result(0)[column];
      for (std::int64_t group = 1; group < groups_; ++group) reference_[column] = std::max(reference_[column], group_result(group)[column]);
    }
    return true;
  }

  // The tiles' exponentials, their totals per column, and each group's share of exponentialsᵀ · weight.
  void sum_exponentials() {
    const std::int64_t stride = logits_.stride(), columns = logits_.columns();
    watch_.open();
    context_.pool.parallel_for(groups_, [&](std::int64_t group, int thread) {
      const std::int64_t panel_elements = vocabulary_block * round_up(weight_.columns, kernels_.tile_columns);
      float* panels = context_.thread[static_cast<std::size_t>(thread)].request(panel_elements);
      std::fill_n(group_result(group), columns, 0.f);
      for_each_block(group, [&](std::int64_t block, bool first) {
        watch_.begin(thread);
        logits_.multiply(block, tile(block));
        watch_.lap(thread, LossStopwatch::forward_product);
        kernels_.add_column_exponentials(group_result(group), tile(block), stride, reference_, logits_.tile_rows(block), columns);
        watch_.lap(thread, LossStopwatch::other_work);
        add_share(share(group), block, panels, !first);
        watch_.lap(thread, LossStopwatch::hidden_product);
      });
    });
    watch_.close();
    std::memcpy(total_, group_result(0), static_cast<std::size_t>(columns) * sizeof(float));
    for (std::int64_t group = 1; group < groups_; ++group) kernels_.add(total_, group_result(group), columns);
  }

  // share(columns, width) (+)= tileᵀ · weight block. The tile is read in place, a group's columns at a time.
  void add_share(float* share, std::int64_t index, float* panels, bool accumulate) const {
    const std::int64_t width = weight_.columns, depth = logits_.tile_rows(index), panel = depth * kernels_.tile_columns;
    kernels_.pack_right(panels, panel, weight_.f32() + index * vocabulary_block * weight_.stride, weight_.stride, depth, width);
    GemmBlock block{};
    block.rows = logits_.columns();
    block.columns = width;
    block.depth = depth;
    block.left = tile(index);
    block.left_stride = logits_.stride();
    block.left_group = kernels_.tile_rows;
    block.left_transposed = true;
    block.right = panels;
    block.right_panel = panel;
    block.out = share;
    block.out_stride = width;
    block.accumulate = accumulate;
    kernels_.gemm_block(block);
  }

  void write_hidden_gradient(const Tensor& dhidden, float scale) {
    const std::int64_t width = weight_.columns;
    watch_.open();
    context_.pool.parallel_for(logits_.columns(), [&](std::int64_t column, int thread) {
      watch_.begin(thread);
      float* out = dhidden.f32() + logits_.row(column) * dhidden.stride;
      std::memcpy(out, share(0) + column * width, static_cast<std::size_t>(width) * sizeof(float));
      for (std::int64_t group = 1; group < groups_; ++group) kernels_.add(out, share(group) + column * width, width);
      kernels_.scale_row(out, factor_[column], width);
      subtract_row(out, weight_.f32() + logits_.target(column) * weight_.stride, scale, width);
      watch_.lap(thread, LossStopwatch::hidden_product);
    });
    watch_.close();
  }

  // dweight += exponentials · (factors * hidden states), less scale * hidden state at each target.
  void add_weight_gradient(const Tensor& dweight, float scale) {
    const Tensor& rows = logits_.rows();
    PackedRight right{};
    watch_.measure(LossStopwatch::weight_product, [&] {
      for (std::int64_t column = 0; column < rows.rows; ++column) {
        kernels_.scale_row(rows.f32() + column * rows.stride, factor_[column], rows.columns);
      }
      right = pack_right(context_, panels_, rows, Transpose::no, 0, rows.columns);
    });
    watch_.open();
    context_.pool.parallel_for(logits_.blocks(), [&](std::int64_t block, int thread) {
      watch_.begin(thread);
      float* out = dweight.f32() + block * vocabulary_block * dweight.stride;
      multiply_tile(block, right, out, dweight.stride);
      logits_.for_each_target(block, [&](std::int64_t column, std::int64_t target) {
        subtract_row(out + target * dweight.stride, hidden_.f32() + logits_.row(column) * hidden_.stride, scale, rows.columns);
      });
      watch_.lap(thread, LossStopwatch::weight_product);
    });
    watch_.close();
  }

  // out += tile · right
  void multiply_tile(std::int64_t index, const PackedRight& right, float* out, std::int64_t out_stride) const {
    const std::int64_t depth = logits_.columns(), step = depth_step(depth);
    GemmBlock block{};
    block.rows = logits_.tile_rows(index);
    block.columns = weight_.columns;
    block.left_stride = logits_.stride();
    block.left_group = kernels_.tile_rows * logits_.stride();
    block.out = out;
    block.out_stride = out_stride;
    block.accumulate = true;
    for (std::int64_t k = 0; k < depth; k += step) {
      block.depth = std::min(step, depth - k);
      block.left = tile(index) + k;
      block.right = right.run(k, block.depth, 0);
      block.right_panel = block.depth * kernels_.tile_columns;
      kernels_.gemm_block(block);
    }
  }

  CpuContext& context_;
  const Kernels& kernels_;
  const Tensor hidden_, weight_;
  LogitTiles logits_;
  LossStopwatch watch_;
  const std::int64_t groups_;
  float *tiles_, *shares_, *panels_;
  // Per column of the chunk, and per group and column.
  float *reference_, *target_logit_, *total_, *factor_, *group_results_;
};

}  // namespace

void linear_cross_entropy(CpuContext& context, float* losses, const Tensor& dhidden, const Tensor& dweight, const Tensor& hidden,
                          const Tensor& weight, const std::int32_t* targets, float scale, LinearLossSeconds* seconds) {
  for (std::int64_t row = 0; row < hidden.rows; ++row) {
    if (targets[row] >= 0) continue;
    losses[row] = 0.f;
    std::fill_n(dhidden.f32() + row * dhidden.stride, hidden.columns, 0.f);
  }
  CrossEntropy(context, hidden, weight, targets, seconds).run(losses, dhidden, dweight, scale);
}

}  // namespace tinyllama
