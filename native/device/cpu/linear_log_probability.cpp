// Each block's softmax is taken while its tile is warm, against the block's own maximum; one factor per block and row,
// exp(block maximum - overall maximum), joins the blocks (online softmax, Milakov & Gimelshein 2018).
#include <algorithm>
#include <cmath>
#include <vector>

#include "native/device/cpu/linear_loss.h"
#include "native/device/cpu/logit_tiles.h"

namespace tinyllama {
namespace {

// Per column of the chunk: what its target's own block knows about the target.
struct Target {
  float logit;
  bool leads;  // the first largest of its block
};

// Whether the target is the first largest of a column of its tile.
bool leads(const float* tile, std::int64_t stride, std::int64_t column, std::int64_t target, float maximum) {
  const float logit = tile[target * stride + column];
  bool first = logit == maximum;
  for (std::int64_t row = 0; row < target && first; ++row) first = tile[row * stride + column] < logit;
  return first;
}

}  // namespace

void linear_log_probability(CpuContext& context, float* log_probabilities, std::uint8_t* greedy, const Tensor& hidden, const Tensor& weight,
                            const std::int32_t* targets) {
  std::fill_n(log_probabilities, hidden.rows, 0.f);
  std::fill_n(greedy, hidden.rows, std::uint8_t{0});
  const Kernels& kernels = context.kernels;
  LogitTiles logits(context, hidden, weight, targets);
  const std::int64_t stride = logits.stride(), blocks = logits.blocks();
  float* maxima = context.statistics.request((2 * blocks + 2) * stride);
  float *sums = maxima + blocks * stride, *top = sums + blocks * stride, *total = top + stride;
  std::vector<Target> found(static_cast<std::size_t>(logits.capacity()));

  for (std::int64_t chunk = 0; chunk < logits.chunks(); ++chunk) {
    logits.open(chunk);
    context.pool.parallel_for(blocks, [&](std::int64_t block, int thread) {
      float* tile = context.thread[static_cast<std::size_t>(thread)].request(vocabulary_block * stride);
      float* own = maxima + block * stride;
      logits.multiply(block, tile);
      kernels.column_maxima(own, tile, stride, logits.tile_rows(block), logits.columns());
      logits.for_each_target(block, [&](std::int64_t column, std::int64_t target) {
        found[static_cast<std::size_t>(column)] = {tile[target * stride + column], leads(tile, stride, column, target, own[column])};
      });
      kernels.column_exponentials(sums + block * stride, tile, stride, own, nullptr, logits.tile_rows(block), logits.columns());
    });
    kernels.column_maxima(top, maxima, stride, blocks, logits.columns());
    for (std::int64_t column = 0; column < logits.columns(); ++column) {
      const Target& target = found[static_cast<std::size_t>(column)];
      const std::int64_t home = logits.target(column) / vocabulary_block;
      bool first = target.leads;
      for (std::int64_t block = 0; block < blocks && first; ++block) {
        const float maximum = maxima[block * stride + column];
        first = block < home ? maximum < target.logit : maximum <= target.logit;
      }
      greedy[logits.row(column)] = first;
    }
    kernels.column_exponentials(total, maxima, stride, top, sums, blocks, logits.columns());
    for (std::int64_t column = 0; column < logits.columns(); ++column) {
      const double logit = static_cast<double>(found[static_cast<std::size_t>(column)].logit);
      const double log_sum = static_cast<double>(top[column]) + std::log(static_cast<double>(total[column]));
      log_probabilities[logits.row(column)] = static_cast<float>(logit - log_sum);
    }
  }
}

}  // namespace tinyllama
