#include "native/distributed/store_plan.h"

#include <algorithm>

namespace tinyllama {

std::size_t slot_of(std::size_t group, std::size_t groups, bool tied) {
  if (group == 0) return 2;
  if (group + 1 == groups) return tied ? 3 : 2;
  return (group - 1) % 2;
}

std::int64_t exchange_part(const ShardLayout& shards, std::size_t group, int world) {
  const std::int64_t whole = shards.share(group) * shards.shards();
  return (whole / world + ShardLayout::block) / ShardLayout::block * ShardLayout::block;
}

StorePlan plan_store(const ParameterLayout& layout, const ShardLayout& shards, const Sharding& sharding, int world, DataType compute_type,
                     DataType state_type) {
  const std::int64_t compute = bytes_of(compute_type);
  const bool sharded = shards.shards() > 1;
  StorePlan plan;
  plan.masters = shards.local_count() * bytes_of(state_type);
  const bool each = sharding.sums_each_micro_batch();
  if (!each) plan.gradients = shards.padded_count() * 4;
  if (compute_type != DataType::f32 && (sharded || state_type != DataType::f32)) {
    for (const Parameter& parameter : layout.parameters) plan.gains += parameter.role == ParameterRole::gain ? parameter.count * 4 : 0;
  }
  const bool resident = sharding.strategy == Strategy::none || sharding.strategy == Strategy::zero2 || !sharded;
  if (resident && (sharded || compute_type != state_type)) plan.resident = shards.padded_count() * compute;
  const std::size_t groups = shards.groups().size();
  for (std::size_t group = 0; group < groups; ++group) {
    const std::int64_t whole = shards.share(group) * shards.shards();
    const std::size_t slot = slot_of(group, groups, layout.head == layout.embedding);
    if (!resident) plan.slots[slot] = std::max(plan.slots[slot], whole * compute);
    if (each) plan.gradient_slots[slot] = std::max(plan.gradient_slots[slot], whole * 4);
    plan.norm_sums += (shards.share(group) + ShardLayout::block - 1) / ShardLayout::block * static_cast<std::int64_t>(sizeof(double));
    if (!sharding.fixed_order || world == 1) continue;
    plan.exchange = std::max(plan.exchange, 4 * (shards.shards() == world ? whole : exchange_part(shards, group, world) * world));
  }
  if (each) plan.sums = shards.local_count() * 4;
  return plan;
}

}  // namespace tinyllama
