#include "native/model/activations.h"

#include <algorithm>

namespace tinyllama {

namespace {

constexpr std::int64_t logits_chunk_rows = 128;

// Memory that all layers use in turn.
struct Shared {
  Tensor normed;     // (N, D)
  Tensor activated;  // (N, F)
  Tensor gate_up;    // (N, 2F)
  LayerActivations layer;
};

// `shared` is null where a layer keeps everything.
LayerActivations place_layer(ArenaPlan& plan, const LlamaConfig& config, const PassShape& shape, const Shared* shared) {
  const std::int64_t rows = shape.batch * shape.length;
  const auto take = [&](std::int64_t columns) { return plan.take_matrix(shape.type, rows, columns); };
  const Recompute recompute = shared ? shape.recompute : Recompute::none;
  LayerActivations layer = recompute == Recompute::full ? shared->layer : LayerActivations{};
  layer.attention_input = take(config.hidden_size);
  layer.attention_rstd = plan.take<float>(rows);
  layer.mlp_rstd = plan.take<float>(rows);
  if (recompute == Recompute::full) return layer;
  layer.qkv = take(config.qkv_width());
  layer.attended = take(config.query_width());
  layer.lse = plan.take<float>(rows * config.num_attention_heads);
  layer.mlp_input = take(config.hidden_size);
  const bool keeps_pointwise = recompute == Recompute::none;
  layer.attention_normed = keeps_pointwise ? take(config.hidden_size) : shared->normed;
  layer.mlp_normed = keeps_pointwise ? take(config.hidden_size) : shared->normed;
  layer.activated = keeps_pointwise ? take(config.intermediate_size) : shared->activated;
  layer.gate_up = recompute == Recompute::gate_up ? shared->gate_up : take(2 * config.intermediate_size);
  return layer;
}

// With full recomputation: one layer's, of which every layer has its own input and rstd alone.
LayerActivations place_shared_layer(ArenaPlan& plan, const LlamaConfig& config, const PassShape& shape, const Shared& shared) {
  PassShape kept = shape;
  kept.recompute = Recompute::pointwise;
  return place_layer(plan, config, kept, &shared);
}

}  // namespace

void place(Activations& activations, ArenaPlan& plan, const LlamaConfig& config, const PassShape& shape) {
  const std::int64_t rows = shape.batch * shape.length;
  const auto layers = static_cast<std::size_t>(config.num_hidden_layers);
  const auto take = [&](std::int64_t columns) { return plan.take_matrix(shape.type, rows, columns); };
  activations.layers.resize(layers);
  Shared shared{};
  if (shape.pass == Pass::train) {
    activations.residual_gradient = take(config.hidden_size);
    activations.attended_gradient = take(config.query_width());
    void* memory = take(std::max(config.qkv_width(), config.intermediate_size)).data;
    activations.qkv_gradient = matrix(memory, shape.type, rows, config.qkv_width());
    activations.activated_gradient = matrix(memory, shape.type, rows, config.intermediate_size);
    shared.activated = activations.activated_gradient;
    if (shape.recompute != Recompute::none) shared.normed = take(config.hidden_size);
    if (shape.recompute == Recompute::gate_up) shared.gate_up = take(2 * config.intermediate_size);
    if (shape.recompute == Recompute::full) shared.layer = place_shared_layer(plan, config, shape, shared);
    for (LayerActivations& layer : activations.layers) layer = place_layer(plan, config, shape, &shared);
  } else {
    std::fill(activations.layers.begin(), activations.layers.end(), place_layer(plan, config, shape, nullptr));
  }
  activations.tokens = plan.take<std::int32_t>(rows);
  activations.targets = plan.take<std::int32_t>(rows);
  activations.first_keys = plan.take<std::int32_t>(rows);
  activations.loss_scale = plan.take<float>(1);
  activations.delta = take(config.hidden_size);
  activations.final_input = take(config.hidden_size);
  activations.final_rstd = plan.take<float>(rows);
  activations.hidden = take(config.hidden_size);
  activations.losses = plan.take<float>(rows);
  activations.greedy = plan.take<std::uint8_t>(rows);
  if (shape.pass == Pass::logits)
    activations.logits = plan.take_matrix(DataType::f32, std::min(rows, logits_chunk_rows), config.vocab_size);
}

}  // namespace tinyllama
