// The models that benchmarks run by name.
#pragma once
#include <optional>
#include <string>

#include "native/model/config.h"

namespace tinyllama {

// "1.1b": TinyLlama's shape; "tiny": for a look at the program itself.
inline std::optional<LlamaConfig> lab_model(const std::string& name) {
  LlamaConfig config;
  config.vocab_size = 32000;
  if (name == "1.1b") {
    config.hidden_size = 2048, config.intermediate_size = 5632, config.num_hidden_layers = 22;
    config.num_attention_heads = 32, config.num_key_value_heads = 4, config.head_dim = 64;
    return config;
  }
  if (name != "tiny") return std::nullopt;
  config.hidden_size = 256, config.intermediate_size = 704, config.num_hidden_layers = 4;
  config.num_attention_heads = 4, config.num_key_value_heads = 2, config.head_dim = 64;
  return config;
}

}  // namespace tinyllama
