#include "native/model/config.h"

#include <cmath>
#include <utility>

#include "native/core/error.h"

namespace tinyllama {

namespace {

// Far above any model that fits a machine, and small enough that no product of sizes overflows.
constexpr std::int64_t largest_extent = std::int64_t{1} << 20;
constexpr std::int64_t most_parameters = std::int64_t{1} << 44;

void require_extent(std::int64_t value, const char* name) {
  require(value >= 1 && value <= largest_extent, std::string("model config: ") + name + " must lie between 1 and " +
                                                     std::to_string(largest_extent) + ", got " + std::to_string(value));
}

}  // namespace

void validate(const LlamaConfig& config) {
  require_extent(config.vocab_size, "vocab_size");
  require_extent(config.hidden_size, "hidden_size");
  require_extent(config.intermediate_size, "intermediate_size");
  require_extent(config.num_hidden_layers, "num_hidden_layers");
  require_extent(config.num_attention_heads, "num_attention_heads");
  require_extent(config.num_key_value_heads, "num_key_value_heads");
  require_extent(config.head_dim, "head_dim");
  require(config.num_attention_heads % config.num_key_value_heads == 0,
          "model config: num_attention_heads (" + std::to_string(config.num_attention_heads) +
              ") must be a multiple of num_key_value_heads (" + std::to_string(config.num_key_value_heads) + ")");
  require(config.head_dim % 2 == 0, "model config: head_dim must be even for rotary embeddings, got " + std::to_string(config.head_dim));
  require(config.rms_norm_eps >= 0 && std::isfinite(config.rms_norm_eps),
          "model config: rms_norm_eps must be finite and not negative, got " + std::to_string(config.rms_norm_eps));
  require(config.rope_theta > 0 && std::isfinite(config.rope_theta),
          "model config: rope_theta must be finite and positive, got " + std::to_string(config.rope_theta));
}

ParameterLayout parameter_layout(const LlamaConfig& config) {
  validate(config);
  ParameterLayout layout;
  auto add = [&layout](std::string name, std::vector<std::int64_t> shape, ParameterRole role) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) {
      require(extent <= most_parameters / count, "model config: " + name + " is too large");
      count *= extent;
    }
    require(count <= most_parameters - layout.count, "model config: more than " + std::to_string(most_parameters) + " parameters");
    const std::int64_t offset = layout.count;
    layout.parameters.push_back({std::move(name), std::move(shape), offset, count, role});
    layout.count += count;
    return offset;
  };
  const std::int64_t width = config.hidden_size;
  const std::int64_t key_width = config.num_key_value_heads * config.head_dim;
  layout.embedding = add("model.embed_tokens.weight", {config.vocab_size, width}, ParameterRole::matrix);
  for (std::int64_t index = 0; index < config.num_hidden_layers; ++index) {
    const std::string layer = "model.layers." + std::to_string(index) + ".";
    LayerOffsets offsets{};
    offsets.attention_norm = add(layer + "input_layernorm.weight", {width}, ParameterRole::gain);
    offsets.qkv = add(layer + "self_attn.q_proj.weight", {config.query_width(), width}, ParameterRole::matrix);
    add(layer + "self_attn.k_proj.weight", {key_width, width}, ParameterRole::matrix);
    add(layer + "self_attn.v_proj.weight", {key_width, width}, ParameterRole::matrix);
    offsets.output = add(layer + "self_attn.o_proj.weight", {width, config.query_width()}, ParameterRole::residual_projection);
    offsets.mlp_norm = add(layer + "post_attention_layernorm.weight", {width}, ParameterRole::gain);
    offsets.gate_up = add(layer + "mlp.gate_proj.weight", {config.intermediate_size, width}, ParameterRole::matrix);
    add(layer + "mlp.up_proj.weight", {config.intermediate_size, width}, ParameterRole::matrix);
    offsets.down = add(layer + "mlp.down_proj.weight", {width, config.intermediate_size}, ParameterRole::residual_projection);
    layout.layers.push_back(offsets);
  }
  layout.norm = add("model.norm.weight", {width}, ParameterRole::gain);
  layout.head = config.tie_word_embeddings ? layout.embedding
                                           : add("lm_head.weight", {config.vocab_size, width}, ParameterRole::matrix);
  return layout;
}

}  // namespace tinyllama
