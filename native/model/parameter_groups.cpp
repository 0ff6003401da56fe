#include "native/model/parameter_groups.h"

#include <algorithm>

namespace tinyllama {

std::vector<ParameterGroup> parameter_groups(const ParameterLayout& layout) {
  std::vector<std::int64_t> starts{layout.embedding};
  for (const LayerOffsets& layer : layout.layers) starts.push_back(layer.attention_norm);
  starts.push_back(layout.norm);
  starts.push_back(layout.count);
  std::vector<ParameterGroup> groups;
  for (std::size_t index = 0; index + 1 < starts.size(); ++index) groups.push_back({starts[index], starts[index + 1] - starts[index]});
  return groups;
}

ShardLayout::ShardLayout(const ParameterLayout& layout, int shards, int shard) : shards_(shards), groups_(parameter_groups(layout)) {
  for (std::size_t group = 0; group < groups_.size(); ++group) {
    const std::int64_t count = groups_[group].count, unit = shards * block;
    const std::int64_t share = shards == 1 ? count : (count + unit - 1) / unit * block;
    shares_.push_back(share);
    local_offsets_.push_back(local_count_);
    const std::int64_t first = shard * share, held = std::clamp<std::int64_t>(count - first, 0, share);
    if (held > 0) pieces_.push_back({group, groups_[group].offset + first, local_count_, held});
    local_count_ += share;
  }
}

std::size_t ShardLayout::group_of(std::int64_t flat) const {
  const auto after = std::upper_bound(groups_.begin(), groups_.end(), flat, [](std::int64_t at, const ParameterGroup& group) { return at < group.offset; });
  return static_cast<std::size_t>(after - groups_.begin()) - 1;
}

}  // namespace tinyllama
