#include "native/model/memory_plan.h"

namespace tinyllama {

MemoryPlan plan_training_memory(const LlamaConfig& config, std::int64_t batch, std::int64_t length, DataType compute_type,
                                Recompute recompute) {
  const std::int64_t parameters = parameter_layout(config).count;
  const std::int64_t rounded = compute_type == DataType::f32 ? 0 : bytes_of(compute_type);
  ArenaPlan arena(nullptr);
  Activations activations{};
  place(activations, arena, config, {batch, length, Pass::train, compute_type, recompute});
  return {parameters * (4 + rounded), parameters * 4, parameters * 8, static_cast<std::int64_t>(arena.used())};
}

}  // namespace tinyllama
