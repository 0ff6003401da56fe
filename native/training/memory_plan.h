// What training a model holds on its device, before anything is allocated: the arena's and the store's own arithmetic.
#pragma once
#include <cstdint>

#include "native/distributed/sharding.h"
#include "native/model/activations.h"
#include "native/model/config.h"

namespace tinyllama {

struct MemoryPlan {
  std::int64_t weights;      // masters, and what passes read of them
  std::int64_t gradients;    // fp32
  std::int64_t moments;      // of the state's type
  std::int64_t activations;  // of one micro-batch, with the backward pass's gradients and the table of rotations
  std::int64_t overhead;     // what the device holds for itself: scratch of its operations, workspace of its products

  std::int64_t total() const { return weights + gradients + moments + activations + overhead; }
};

struct MemoryPlanOptions {
  DataType compute_type = DataType::f32;
  DataType state_type = DataType::f32;
  Recompute recompute = Recompute::none;
  Sharding sharding;
  int world = 1;
  bool gpu = false;
};

// Bytes on one of `world` ranks that train with micro-batches of batch sequences of length tokens. On a GPU, the driver's context and what a communicator
// takes come on top.
MemoryPlan plan_training_memory(const LlamaConfig& config, std::int64_t batch, std::int64_t length, const MemoryPlanOptions& options);

}  // namespace tinyllama
