#include "native/model/llama.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>

#include "native/core/error.h"
#include "native/model/initialization.h"

namespace tinyllama {

namespace {

void check_ids(std::span<const std::int32_t> ids, std::int64_t length, std::int64_t vocabulary, bool negative_allowed, const char* what) {
  for (std::size_t index = 0; index < ids.size(); ++index) {
    const std::int64_t id = ids[index];
    if (id < vocabulary && (id >= 0 || negative_allowed)) continue;
    const auto position = static_cast<std::int64_t>(index);
    throw Error(std::string(what) + " " + std::to_string(id) + " at index " + std::to_string(index) + " (sequence " +
                std::to_string(position / length) + ", position " + std::to_string(position % length) + ") is outside the vocabulary of " +
                std::to_string(vocabulary));
  }
}

void check_first_keys(std::span<const std::int32_t> first_keys, std::int64_t length) {
  for (std::size_t index = 0; index < first_keys.size(); ++index) {
    const std::int64_t position = static_cast<std::int64_t>(index) % length;
    if (first_keys[index] >= 0 && first_keys[index] <= position) continue;
    throw Error("first key " + std::to_string(first_keys[index]) + " at index " + std::to_string(index) + " must lie between 0 and its position " +
                std::to_string(position));
  }
}

int next_number() {
  static std::atomic<int> models = 0;
  return ++models;
}

}  // namespace

Llama::Llama(Device& device, const LlamaConfig& config, Parameters& parameters, Recompute recompute)
    : number_(next_number()), device_(device), config_(config), recompute_(recompute), layout_(parameter_layout(config)), parameters_(parameters), arena_(device) {}

void Llama::check(const TokenBatch& batch, bool with_targets) const {
  require(batch.batch >= 1 && batch.length >= 1 && batch.batch <= INT32_MAX && batch.length <= INT32_MAX,
          "batch: " + std::to_string(batch.batch) + " sequences of " + std::to_string(batch.length) +
              " tokens; both must be at least 1 and fit 32 bits");
  const auto expected = static_cast<std::size_t>(batch.batch * batch.length);
  auto check_size = [&](std::size_t size, const char* what) {
    require(size == expected, std::string("batch: ") + what + " has " + std::to_string(size) + " ids, but " + std::to_string(batch.batch) +
                                  " sequences of " + std::to_string(batch.length) + " tokens are " + std::to_string(expected));
  };
  check_size(batch.tokens.size(), "tokens");
  check_ids(batch.tokens, batch.length, config_.vocab_size, false, "token");
  if (!batch.first_keys.empty()) {
    check_size(batch.first_keys.size(), "first keys");
    check_first_keys(batch.first_keys, batch.length);
  }
  if (with_targets) {
    check_size(batch.targets.size(), "targets");
    check_ids(batch.targets, batch.length, config_.vocab_size, true, "target");
  }
}

// cos and sin of position * theta^(-2i/S), computed in double; (T, S/2) each. They depend on the position alone, so a longer table serves
// every shorter length.
void Llama::prepare_rotary(std::int64_t length) {
  if (length <= rotary_length_) return;
  const std::int64_t half = config_.head_dim / 2;
  std::vector<float> table(static_cast<std::size_t>(rotary_table_values(config_, length)));
  for (std::int64_t position = 0; position < length; ++position) {
    for (std::int64_t index = 0; index < half; ++index) {
      const double frequency = std::pow(config_.rope_theta, -2.0 * static_cast<double>(index) / static_cast<double>(config_.head_dim));
      const double angle = static_cast<double>(position) * frequency;
      table[static_cast<std::size_t>(position * half + index)] = static_cast<float>(std::cos(angle));
      table[static_cast<std::size_t>((length + position) * half + index)] = static_cast<float>(std::sin(angle));
    }
  }
  rotary_length_ = 0;
  rotary_.reset();
  rotary_ = device_.allocate(table.size() * sizeof(float));
  device_.copy_in(rotary_->data(), table.data(), table.size() * sizeof(float));
  device_.synchronize();
  rotary_length_ = length;
}

const float* Llama::cosine() const { return static_cast<const float*>(rotary_->data()); }
const float* Llama::sine() const { return cosine() + rotary_length_ * config_.head_dim / 2; }

void Llama::prepare(const TokenBatch& batch, Pass pass) {
  const PassShape shape{batch.batch, batch.length, pass, device_.compute_type(), recompute_};
  ArenaPlan measure(nullptr);
  place(activations_, measure, config_, shape);
  ArenaPlan plan(arena_.reserve(measure.used()));
  place(activations_, plan, config_, shape);
  prepare_rotary(batch.length);
  parameters_.prepare();
  shape_ = {batch.batch, batch.length, config_.num_attention_heads, config_.num_key_value_heads, config_.head_dim};
  device_.copy_in(activations_.tokens, batch.tokens.data(), batch.tokens.size_bytes());
  if (pass != Pass::logits) device_.copy_in(activations_.targets, batch.targets.data(), batch.targets.size_bytes());
  first_keys_ = batch.first_keys.empty() ? nullptr : activations_.first_keys;
  if (first_keys_) device_.copy_in(activations_.first_keys, batch.first_keys.data(), batch.first_keys.size_bytes());
}

// From the normed input of the attention to what its projection adds to the residual stream, in delta.
void Llama::attend(std::size_t index) {
  const LayerOffsets& offsets = layout_.layers[index];
  const LayerActivations& layer = activations_.layers[index];
  const std::int64_t width = config_.hidden_size;
  device_.matmul(layer.qkv, layer.attention_normed, Transpose::no, weight(offsets.qkv, config_.qkv_width(), width), Transpose::yes, false);
  device_.rotary(layer.qkv, cosine(), sine(), shape_, false);
  device_.attention_forward(layer.attended, layer.lse, layer.qkv, shape_, first_keys_);
  device_.matmul(activations_.delta, layer.attended, Transpose::no, weight(offsets.output, width, config_.query_width()), Transpose::yes,
                 false);
}

// Gate and up projections of the MLP's normed input.
void Llama::expand(std::size_t index) {
  const LayerActivations& layer = activations_.layers[index];
  const std::int64_t gate_up = layout_.layers[index].gate_up;
  device_.matmul(layer.gate_up, layer.mlp_normed, Transpose::no, weight(gate_up, 2 * config_.intermediate_size, config_.hidden_size),
                 Transpose::yes, false);
}

void Llama::forward_layer(std::size_t index) {
  parameters_.acquire(index + 1, index + 2);
  const LayerOffsets& offsets = layout_.layers[index];
  const LayerActivations& layer = activations_.layers[index];
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  // The residual stream enters as the embedding, or as the layer below's stream plus what its MLP adds.
  const bool first = index == 0;
  const Tensor below = first ? layer.attention_input : activations_.layers[index - 1].mlp_input;
  device_.rms_norm_forward(layer.attention_normed, layer.attention_rstd, layer.attention_input, below,
                           first ? Tensor{} : activations_.delta, parameters_.gain(offsets.attention_norm), eps);
  attend(index);
  device_.rms_norm_forward(layer.mlp_normed, layer.mlp_rstd, layer.mlp_input, layer.attention_input, activations_.delta,
                           parameters_.gain(offsets.mlp_norm), eps);
  expand(index);
  device_.swiglu_forward(layer.activated, layer.gate_up);
  device_.matmul(activations_.delta, layer.activated, Transpose::no, weight(offsets.down, config_.hidden_size, config_.intermediate_size),
                 Transpose::yes, false);
}

// Brings back what the forward pass did not keep of the layer, but for what the backward pass's own operations bring back.
void Llama::recompute_layer(std::size_t index) {
  const LayerOffsets& offsets = layout_.layers[index];
  const LayerActivations& layer = activations_.layers[index];
  if (recompute_ == Recompute::full) {
    device_.rms_norm_again(layer.attention_normed, layer.attention_input, parameters_.gain(offsets.attention_norm), layer.attention_rstd);
    attend(index);
    device_.rms_norm_forward(layer.mlp_normed, layer.mlp_rstd, layer.mlp_input, layer.attention_input, activations_.delta,
                             parameters_.gain(offsets.mlp_norm), static_cast<float>(config_.rms_norm_eps));
    expand(index);
  } else if (recompute_ == Recompute::gate_up) {
    device_.rms_norm_again(layer.mlp_normed, layer.mlp_input, parameters_.gain(offsets.mlp_norm), layer.mlp_rstd);
    expand(index);
  }
}

void Llama::forward() {
  parameters_.acquire(0, 1);
  device_.embedding_forward(activations_.layers.front().attention_input, weight(layout_.embedding, config_.vocab_size, config_.hidden_size),
                            activations_.tokens);
  for (std::size_t index = 0; index < activations_.layers.size(); ++index) forward_layer(index);
  parameters_.acquire(last_group(), std::nullopt);
  // The head may be the embedding, which another group's weights have replaced since.
  if (layout_.head == layout_.embedding) parameters_.acquire(0, std::nullopt);
  device_.rms_norm_forward(activations_.hidden, activations_.final_rstd, activations_.final_input, activations_.layers.back().mlp_input,
                           activations_.delta, parameters_.gain(layout_.norm), static_cast<float>(config_.rms_norm_eps));
}

// Receives in residual_gradient the gradient of the layer's output stream and leaves there that of its input stream.
void Llama::backward_layer(std::size_t index) {
  parameters_.acquire(index + 1, index > 0 ? std::optional(index) : std::nullopt);
  recompute_layer(index);
  backward_mlp(index);
  backward_attention(index);
  parameters_.gradient_ready(index + 1);
}

// Gradients of weights come last of each group: what they read may be recomputed by the operation before.
void Llama::backward_mlp(std::size_t index) {
  const LayerOffsets& offsets = layout_.layers[index];
  const LayerActivations& layer = activations_.layers[index];
  const std::int64_t width = config_.hidden_size;
  const std::int64_t feed_forward = config_.intermediate_size;
  const bool recomputes = recompute_ != Recompute::none;
  const Tensor stream = activations_.residual_gradient;
  const Tensor normed_gradient = activations_.delta;
  device_.matmul(activations_.activated_gradient, stream, Transpose::no, weight(offsets.down, width, feed_forward), Transpose::no, false);
  device_.swiglu_backward(layer.gate_up, recomputes ? layer.activated : Tensor{}, activations_.activated_gradient, layer.gate_up);
  device_.matmul(gradient(offsets.down, width, feed_forward), stream, Transpose::yes, layer.activated, Transpose::no, true);
  device_.matmul(normed_gradient, layer.gate_up, Transpose::no, weight(offsets.gate_up, 2 * feed_forward, width), Transpose::no, false);
  device_.rms_norm_backward(stream, parameters_.gradient(offsets.mlp_norm), recomputes ? layer.mlp_normed : Tensor{}, normed_gradient,
                            layer.mlp_input, parameters_.gain(offsets.mlp_norm), layer.mlp_rstd);
  device_.matmul(gradient(offsets.gate_up, 2 * feed_forward, width), layer.gate_up, Transpose::yes, layer.mlp_normed, Transpose::no, true);
}

void Llama::backward_attention(std::size_t index) {
  const LayerOffsets& offsets = layout_.layers[index];
  const LayerActivations& layer = activations_.layers[index];
  const std::int64_t width = config_.hidden_size;
  const std::int64_t query_width = config_.query_width();
  const std::int64_t qkv_width = config_.qkv_width();
  const Tensor stream = activations_.residual_gradient;
  const Tensor normed_gradient = activations_.delta;
  device_.matmul(activations_.attended_gradient, stream, Transpose::no, weight(offsets.output, width, query_width), Transpose::no, false);
  device_.matmul(gradient(offsets.output, width, query_width), stream, Transpose::yes, layer.attended, Transpose::no, true);
  device_.attention_backward(activations_.qkv_gradient, activations_.attended_gradient, layer.qkv, layer.attended, layer.lse, shape_,
                             first_keys_);
  device_.rotary(activations_.qkv_gradient, cosine(), sine(), shape_, true);
  device_.matmul(normed_gradient, activations_.qkv_gradient, Transpose::no, weight(offsets.qkv, qkv_width, width), Transpose::no, false);
  device_.rms_norm_backward(stream, parameters_.gradient(offsets.attention_norm),
                            recompute_ == Recompute::none ? Tensor{} : layer.attention_normed, normed_gradient, layer.attention_input,
                            parameters_.gain(offsets.attention_norm), layer.attention_rstd);
  device_.matmul(gradient(offsets.qkv, qkv_width, width), activations_.qkv_gradient, Transpose::yes, layer.attention_normed, Transpose::no,
                 true);
}

// Expects in delta the gradient of `hidden`.
void Llama::backward() {
  const Tensor stream = activations_.residual_gradient;
  device_.fill_zero(stream.data, static_cast<std::size_t>(stream.rows * stream.columns * bytes_of(stream.type)));
  device_.rms_norm_backward(stream, parameters_.gradient(layout_.norm), Tensor{}, activations_.delta, activations_.final_input,
                            parameters_.gain(layout_.norm), activations_.final_rstd);
  parameters_.gradient_ready(last_group());
  for (std::size_t index = activations_.layers.size(); index-- > 0;) backward_layer(index);
  device_.embedding_backward(gradient(layout_.embedding, config_.vocab_size, config_.hidden_size), stream, activations_.tokens);
  parameters_.gradient_ready(0);
}

BatchLoss Llama::accumulate(const TokenBatch& batch, float loss_scale) {
  check(batch, true);
  require(std::isfinite(loss_scale), "accumulate: the loss scale must be finite, got " + std::to_string(loss_scale));
  prepare(batch, Pass::train);
  device_.copy_in(activations_.loss_scale, &loss_scale, sizeof(loss_scale));
  const auto pass = [this] {
    forward();
    device_.linear_cross_entropy(activations_.losses, activations_.delta, gradient(layout_.head, config_.vocab_size, config_.hidden_size),
                                 activations_.hidden, weight(layout_.head, config_.vocab_size, config_.hidden_size), activations_.targets,
                                 activations_.loss_scale);
    backward();
  };
  // A shape's operations and memory are the same each time, unless the arena or the rotary table was made anew. Other models may use the device.
  const std::string shape = std::to_string(batch.batch) + "x" + std::to_string(batch.length) + (first_keys_ ? " with first keys" : "");
  parameters_.gradient(layout_.embedding);  // allocated before anything is recorded
  if (parameters_.communicates()) {
    pass();
  } else {
    device_.repeat("train " + shape + " in arena " + std::to_string(arena_.generation()) + ", positions " + std::to_string(rotary_length_) +
                       ", model " + std::to_string(number_),
                   pass);
  }
  std::vector<float> losses(batch.targets.size());
  device_.copy_out(losses.data(), activations_.losses, losses.size() * sizeof(float));
  device_.synchronize();
  BatchLoss result{0.0, 0};
  for (std::size_t index = 0; index < losses.size(); ++index) {
    if (batch.targets[index] < 0) continue;
    result.sum += static_cast<double>(losses[index]);
    ++result.scored;
  }
  return result;
}

BatchScores Llama::score(const TokenBatch& batch) {
  check(batch, true);
  prepare(batch, Pass::score);
  forward();
  device_.linear_log_probability(activations_.losses, activations_.greedy, activations_.hidden,
                                 weight(layout_.head, config_.vocab_size, config_.hidden_size), activations_.targets);
  BatchScores scores{std::vector<float>(batch.targets.size()), std::vector<std::uint8_t>(batch.targets.size())};
  device_.copy_out(scores.log_probabilities.data(), activations_.losses, scores.log_probabilities.size() * sizeof(float));
  device_.copy_out(scores.greedy.data(), activations_.greedy, scores.greedy.size());
  device_.synchronize();
  return scores;
}

std::vector<float> Llama::logits(const TokenBatch& batch) {
  check(batch, false);
  prepare(batch, Pass::logits);
  forward();
  const std::int64_t rows = batch.batch * batch.length;
  std::vector<float> result(static_cast<std::size_t>(rows * config_.vocab_size));
  for (std::int64_t first = 0; first < rows; first += activations_.logits.rows) {
    const std::int64_t count = std::min(activations_.logits.rows, rows - first);
    const Tensor hidden = activations_.hidden.slice(first, count);
    const Tensor chunk = matrix(activations_.logits.f32(), count, config_.vocab_size);
    device_.matmul(chunk, hidden, Transpose::no, weight(layout_.head, config_.vocab_size, config_.hidden_size), Transpose::yes, false);
    const auto bytes = static_cast<std::size_t>(count * config_.vocab_size) * sizeof(float);
    device_.copy_out(result.data() + first * config_.vocab_size, chunk.data, bytes);
  }
  device_.synchronize();
  return result;
}

}  // namespace tinyllama
