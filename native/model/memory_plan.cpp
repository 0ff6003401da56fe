#include "native/model/memory_plan.h"

namespace tinyllama {

MemoryPlan plan_training_memory(const LlamaConfig& config, std::int64_t batch, std::int64_t length, DataType compute_type,
                                Recompute recompute, DataType state_type) {
  const ParameterLayout layout = parameter_layout(config);
  const std::int64_t parameters = layout.count, state = bytes_of(state_type);
  const std::int64_t copy = state_type == compute_type ? 0 : bytes_of(compute_type);
  std::int64_t gains = 0;
  for (const Parameter& parameter : layout.parameters) gains += parameter.role == ParameterRole::gain ? parameter.count : 0;
  const bool widens_gains = state_type != DataType::f32 && compute_type != DataType::f32;
  ArenaPlan arena(nullptr);
  Activations activations{};
  place(activations, arena, config, {batch, length, Pass::train, compute_type, recompute});
  return {parameters * (state + copy) + (widens_gains ? gains * 4 : 0), parameters * 4, parameters * 2 * state,
          static_cast<std::int64_t>(arena.used())};
}

}  // namespace tinyllama
