// What a forward pass keeps for the backward pass, and the scratch both share. N = batch * length rows.
#pragma once
#include <cstdint>
#include <vector>

#include "native/model/arena.h"
#include "native/model/config.h"

namespace tinyllama {

enum class Pass : std::uint8_t {
  train,  // every layer's activations are kept, and the backward pass has its scratch
  score,  // layers share one set
  logits  // as score, with a chunk of logits
};

// What a training pass computes again in the backward pass instead of keeping it. Results are the same bits.
enum class Recompute : std::uint8_t {
  none,
  pointwise,  // the norms' outputs and SwiGLU's: no product is computed twice
  gate_up,    // also the product before SwiGLU
  full        // everything within a layer
};

struct LayerActivations {
  Tensor attention_input;   // (N, D) residual stream
  float* attention_rstd;    // (N)
  Tensor attention_normed;  // (N, D)
  Tensor qkv;               // (N, (H + 2G)·S), rotated
  Tensor attended;          // (N, H·S)
  float* lse;               // (B, H, T)
  Tensor mlp_input;         // (N, D) residual stream
  float* mlp_rstd;          // (N)
  Tensor mlp_normed;        // (N, D)
  Tensor gate_up;           // (N, 2F); the backward pass overwrites it with its gradient
  Tensor activated;         // (N, F); shared memory with activated_gradient where it is recomputed
};

struct Activations {
  std::vector<LayerActivations> layers;
  std::int32_t* tokens;   // (N)
  std::int32_t* targets;  // (N)
  std::int32_t* first_keys;  // (N) read where a batch has them
  Tensor delta;           // (N, D) what a sublayer adds to the residual stream
  Tensor final_input;     // (N, D) residual stream
  float* final_rstd;      // (N)
  Tensor hidden;          // (N, D) input of the output projection
  float* losses;          // (N) losses, or log probabilities
  std::uint8_t* greedy;   // (N)
  float* loss_scale;      // one value
  Tensor residual_gradient;  // (N, D)
  Tensor attended_gradient;  // (N, H·S)
  Tensor qkv_gradient;       // (N, (H + 2G)·S); shares memory with activated_gradient
  Tensor activated_gradient; // (N, F)
  Tensor logits;             // (up to 128 rows, V)
};

struct PassShape {
  std::int64_t batch, length;
  Pass pass;
  DataType type;  // of matrices
  Recompute recompute;
};

// Cosines and sines of every position and pair of a head.
inline std::int64_t rotary_table_values(const LlamaConfig& config, std::int64_t length) { return 2 * length * (config.head_dim / 2); }

// Cuts `plan` into the activations of one pass over batch sequences of length tokens.
void place(Activations& activations, ArenaPlan& plan, const LlamaConfig& config, const PassShape& shape);

}  // namespace tinyllama
