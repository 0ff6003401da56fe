#include "native/training/memory_plan.h"

#include "native/device/cuda/scratch_sizes.h"
#include "native/distributed/store_plan.h"

namespace tinyllama {

MemoryPlan plan_training_memory(const LlamaConfig& config, std::int64_t batch, std::int64_t length, const MemoryPlanOptions& options) {
  const ParameterLayout layout = parameter_layout(config);
  const ShardLayout shards(layout, ranks_per_copy(options.sharding, options.world), 0);
  const StorePlan store = plan_store(layout, shards, options.sharding, options.world, options.compute_type, options.state_type);
  ArenaPlan arena(nullptr);
  Activations activations{};
  place(activations, arena, config, {batch, length, Pass::train, options.compute_type, options.recompute});
  const std::int64_t rotary = rotary_table_values(config, length) * static_cast<std::int64_t>(sizeof(float));
  const AttentionShape heads{batch, length, config.num_attention_heads, config.num_key_value_heads, config.head_dim};
  return {.weights = store.weights(),
          .gradients = store.gradient_total(),
          .moments = shards.local_count() * 2 * bytes_of(options.state_type),
          .activations = static_cast<std::int64_t>(arena.used()) + rotary,
          .overhead = options.gpu ? static_cast<std::int64_t>(cuda::training_overhead(heads, config.vocab_size, options.compute_type)) : 0};
}

}  // namespace tinyllama
