#include "native/model/activations.h"

#include <algorithm>

namespace tinyllama {

namespace {

constexpr std::int64_t logits_chunk_rows = 128;

LayerActivations place_layer(ArenaPlan& plan, const LlamaConfig& config, std::int64_t rows) {
  LayerActivations layer{};
  layer.attention_input = plan.take_matrix(rows, config.hidden_size);
  layer.attention_rstd = plan.take<float>(rows);
  layer.attention_normed = plan.take_matrix(rows, config.hidden_size);
  layer.qkv = plan.take_matrix(rows, config.qkv_width());
  layer.attended = plan.take_matrix(rows, config.query_width());
  layer.lse = plan.take<float>(rows * config.num_attention_heads);
  layer.mlp_input = plan.take_matrix(rows, config.hidden_size);
  layer.mlp_rstd = plan.take<float>(rows);
  layer.mlp_normed = plan.take_matrix(rows, config.hidden_size);
  layer.gate_up = plan.take_matrix(rows, 2 * config.intermediate_size);
  layer.activated = plan.take_matrix(rows, config.intermediate_size);
  return layer;
}

}  // namespace

void place(Activations& activations, ArenaPlan& plan, const LlamaConfig& config, std::int64_t batch, std::int64_t length, Pass pass) {
  const std::int64_t rows = batch * length;
  const auto layers = static_cast<std::size_t>(config.num_hidden_layers);
  activations.layers.resize(layers);
  if (pass == Pass::train) {
    for (LayerActivations& layer : activations.layers) layer = place_layer(plan, config, rows);
  } else {
    std::fill(activations.layers.begin(), activations.layers.end(), place_layer(plan, config, rows));
  }
  activations.tokens = plan.take<std::int32_t>(rows);
  activations.targets = plan.take<std::int32_t>(rows);
  activations.delta = plan.take_matrix(rows, config.hidden_size);
  activations.final_input = plan.take_matrix(rows, config.hidden_size);
  activations.final_rstd = plan.take<float>(rows);
  activations.hidden = plan.take_matrix(rows, config.hidden_size);
  activations.losses = plan.take<float>(rows);
  activations.greedy = plan.take<std::uint8_t>(rows);
  if (pass == Pass::train) {
    activations.residual_gradient = plan.take_matrix(rows, config.hidden_size);
    activations.attended_gradient = plan.take_matrix(rows, config.query_width());
    float* shared = plan.take<float>(rows * std::max(config.qkv_width(), config.intermediate_size));
    activations.qkv_gradient = matrix(shared, rows, config.qkv_width());
    activations.activated_gradient = matrix(shared, rows, config.intermediate_size);
  }
  if (pass == Pass::logits) activations.logits = plan.take_matrix(std::min(rows, logits_chunk_rows), config.vocab_size);
}

}  // namespace tinyllama
