// How long each operation of a training step takes alone, at the shapes the step has: which of them cost what, and how near each is to its ceiling.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "native/device/device.h"
#include "native/model/activations.h"
#include "native/model/config.h"

namespace tinyllama {

struct KernelTiming {
  std::string name;
  double seconds;     // of one call, the median over rounds
  double bytes;       // that one call must move: each operand read once, each result written once
  double operations;  // floating-point operations of products and attention (the causal half); 0 for what memory bounds
  std::int64_t calls; // in a micro-batch; in a whole step for the optimizer's
  bool per_step;      // the optimizer's
};

// Fresh random operands; the model's own shapes. `rounds` medians over calls between two synchronizations. state_type: of weights and moments
// between the steps.
std::vector<KernelTiming> time_kernels(Device& device, const LlamaConfig& config, std::int64_t batch, std::int64_t length, Recompute recompute,
                                       int rounds, DataType state_type = DataType::f32);

}  // namespace tinyllama
