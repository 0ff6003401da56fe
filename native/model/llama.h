// A Llama-architecture model: parameters, forward, backward. Written once over the Device interface; nothing here assumes that device
// memory can be read.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "native/device/device.h"
#include "native/model/activations.h"
#include "native/model/config.h"
#include "native/model/parameters.h"

namespace tinyllama {

// Host arrays of batch * length ids, sequence by sequence. A target below 0 is not scored.
struct TokenBatch {
  std::span<const std::int32_t> tokens;
  std::span<const std::int32_t> targets;
  std::int64_t batch = 0;
  std::int64_t length = 0;
  // Per token the first position of its sequence that it attends to, for packed documents: none, or one each, from 0 to the token's own.
  std::span<const std::int32_t> first_keys = {};
};

struct BatchLoss {
  double sum;           // of the scored targets' losses, in nats
  std::int64_t scored;  // how many
};

struct BatchScores {
  std::vector<float> log_probabilities;  // (batch * length), 0 where not scored
  std::vector<std::uint8_t> greedy;      // 1 where the target is the first arg max
};

class Llama {
 public:
  // Device and parameters must outlive the model.
  Llama(Device& device, const LlamaConfig& config, Parameters& parameters, Recompute recompute = Recompute::none);

  const LlamaConfig& config() const { return config_; }
  const ParameterLayout& layout() const { return layout_; }

  // Forward and backward: the gradients receive, added, those of loss_scale * (sum of the scored targets' losses).
  // Throws Error on ids outside the vocabulary or arrays that do not match batch and length, before anything is computed.
  BatchLoss accumulate(const TokenBatch& batch, float loss_scale);

  // Log probabilities of the targets.
  BatchScores score(const TokenBatch& batch);

  // All logits, (batch * length, vocab_size); `targets` is not looked at. For checks on small inputs: the result is on the host.
  std::vector<float> logits(const TokenBatch& batch);

 private:
  void check(const TokenBatch& batch, bool with_targets) const;
  void prepare(const TokenBatch& batch, Pass pass);
  void prepare_rotary(std::int64_t length);
  void forward();
  void forward_layer(std::size_t index);
  void recompute_layer(std::size_t index);
  void attend(std::size_t index);
  void expand(std::size_t index);
  void backward();
  void backward_layer(std::size_t index);
  void backward_mlp(std::size_t index);
  void backward_attention(std::size_t index);
  const float* cosine() const;
  const float* sine() const;
  Tensor weight(std::int64_t offset, std::int64_t rows, std::int64_t columns) { return parameters_.weight(offset, rows, columns); }
  Tensor gradient(std::int64_t offset, std::int64_t rows, std::int64_t columns) { return matrix(parameters_.gradient(offset), rows, columns); }
  std::size_t last_group() const { return layout_.layers.size() + 1; }

  int number_;  // of the models of this process
  Device& device_;
  LlamaConfig config_;
  Recompute recompute_;
  ParameterLayout layout_;
  Parameters& parameters_;
  Arena arena_;
  Activations activations_;
  AttentionShape shape_{};
  const std::int32_t* first_keys_ = nullptr;  // of the pass's batch, on the device
  std::unique_ptr<Buffer> rotary_;
  std::int64_t rotary_length_ = 0;
};

}  // namespace tinyllama
