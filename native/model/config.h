// The shape of a Llama-architecture model, in Hugging Face's names, and where each of its parameters lies in the flat buffers.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace tinyllama {

struct LlamaConfig {
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;  // independent of hidden_size / num_attention_heads
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  bool tie_word_embeddings = false;  // the output projection is the embedding table itself

  std::int64_t query_width() const { return num_attention_heads * head_dim; }
  std::int64_t qkv_width() const { return (num_attention_heads + 2 * num_key_value_heads) * head_dim; }
};

// Throws Error naming the field that cannot be: sizes below 1, heads that do not divide into groups, an odd head size.
void validate(const LlamaConfig& config);

enum class ParameterRole : std::uint8_t {
  gain,                // RMSNorm's
  matrix,              // embedding and linear weights
  residual_projection  // o_proj and down_proj, which write into the residual stream
};

// One tensor of the flat buffers: `offset` counts elements; matrices are [out, in].
struct Parameter {
  std::string name;
  std::vector<std::int64_t> shape;
  std::int64_t offset;
  std::int64_t count;
  ParameterRole role;
};

// Element offsets of a layer's tensors. q, k and v rows are contiguous, one packed matrix; so are gate and up.
struct LayerOffsets {
  std::int64_t attention_norm, qkv, output, mlp_norm, gate_up, down;
};

// The flat order is Hugging Face's: embed_tokens; per layer input_layernorm, q_proj, k_proj, v_proj, o_proj, post_attention_layernorm,
// gate_proj, up_proj, down_proj; then norm and lm_head (absent when tied: `head` is then the embedding's offset).
struct ParameterLayout {
  std::vector<Parameter> parameters;
  std::vector<LayerOffsets> layers;
  std::int64_t embedding = 0;
  std::int64_t norm = 0;
  std::int64_t head = 0;
  std::int64_t count = 0;
};

ParameterLayout parameter_layout(const LlamaConfig& config);

}  // namespace tinyllama
