// What training a model holds on its device, before anything is allocated: the arena's own arithmetic.
#pragma once
#include <cstdint>

#include "native/model/activations.h"
#include "native/model/config.h"

namespace tinyllama {

struct MemoryPlan {
  std::int64_t weights;      // of the state's type, and what passes read of them in another: a copy in the compute type, fp32 gains
  std::int64_t gradients;    // fp32
  std::int64_t moments;      // of the state's type
  std::int64_t activations;  // of one micro-batch, with the backward pass's scratch

  std::int64_t total() const { return weights + gradients + moments + activations; }
};

// Bytes of training with micro-batches of batch sequences of length tokens. A device's own scratch and libraries come on top.
MemoryPlan plan_training_memory(const LlamaConfig& config, std::int64_t batch, std::int64_t length, DataType compute_type, Recompute recompute,
                                DataType state_type = DataType::f32);

}  // namespace tinyllama
