// AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019) over what a rank holds of a model's parameters, with clipping by the global norm.
// Where the store's weights are bf16 the moments are too, and all three are rounded stochastically (Device::adamw_stochastic).
#pragma once
#include <cstdint>
#include <vector>

#include "native/device/device.h"
#include "native/distributed/parameter_store.h"

namespace tinyllama {

enum class DecayPolicy : std::uint8_t {
  all,      // every tensor, TinyLlama's choice
  matrices  // not the norm gains
};

struct AdamWOptions {
  std::int64_t step = 1;  // 1-based, for bias correction
  double learning_rate = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0;
  DecayPolicy decay = DecayPolicy::all;
  double clip = 0;         // largest global gradient norm; 0 turns clipping off
  std::uint64_t seed = 0;  // of the random bits that round weights and moments of bf16
};

class AdamW {
 public:
  // The moments are allocated at the first step or write. Device and store must outlive the optimizer.
  AdamW(Device& device, ParameterStore& store);

  ShardedBuffer& first_moment() { return first_moment_; }
  ShardedBuffer& second_moment() { return second_moment_; }

  // Scales the gradients by min(1, clip / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_, updates the weights and zeroes the gradients.
  // Returns the norm before clipping. When it is not finite, weights and moments stay as they were; the gradients are zeroed all the same.
  double step(const AdamWOptions& options);

 private:
  // Neighbouring tensors of one kind, [offset, offset + count).
  struct Segment {
    std::int64_t offset, count;
    bool gain;
  };

  void update(const ParameterStore::Update& part, const AdamWOptions& options, float gradient_scale);

  Device& device_;
  ParameterStore& store_;
  std::vector<Segment> segments_;
  ShardedBuffer first_moment_;
  ShardedBuffer second_moment_;
};

}  // namespace tinyllama
