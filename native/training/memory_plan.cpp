#include "native/training/memory_plan.h"

#include "native/distributed/store_plan.h"

namespace tinyllama {

MemoryPlan plan_training_memory(const LlamaConfig& config, std::int64_t batch, std::int64_t length, const MemoryPlanOptions& options) {
  const ParameterLayout layout = parameter_layout(config);
  const ShardLayout shards(layout, ranks_per_copy(options.sharding, options.world), 0);
  const StorePlan store = plan_store(layout, shards, options.sharding, options.world, options.compute_type, options.state_type);
  ArenaPlan arena(nullptr);
  Activations activations{};
  place(activations, arena, config, {batch, length, Pass::train, options.compute_type, options.recompute});
  return {store.weights(), store.gradient_total(), shards.local_count() * 2 * bytes_of(options.state_type), static_cast<std::int64_t>(arena.used())};
}

}  // namespace tinyllama
