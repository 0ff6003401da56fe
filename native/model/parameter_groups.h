// Parameters in the groups that are gathered, reduced and freed together: the embedding, each layer, and the final norm with the head.
#pragma once
#include <cstdint>
#include <vector>

#include "native/model/config.h"

namespace tinyllama {

// Elements [offset, offset + count) of the flat order.
struct ParameterGroup {
  std::int64_t offset, count;
};

// Group 0 is the embedding, group 1 + l is layer l, the last is the final norm and, where it is not the embedding, the head.
std::vector<ParameterGroup> parameter_groups(const ParameterLayout& layout);

// Which elements each of `shards` ranks holds: every group is padded to a whole number of blocks for every rank, and cut into equal runs of blocks.
// With one shard there is no padding, and local, padded and flat positions are the same.
class ShardLayout {
 public:
  // Elements per block. Sums of squares are taken per block, so that they do not depend on the cut.
  static constexpr std::int64_t block = 4096;

  // Valid elements of one rank: flat [flat, flat + count) lies at `local` of its storage.
  struct Piece {
    std::size_t group;
    std::int64_t flat, local, count;
  };

  ShardLayout(const ParameterLayout& layout, int shards, int shard);

  int shards() const { return shards_; }
  const std::vector<ParameterGroup>& groups() const { return groups_; }
  std::size_t group_of(std::int64_t flat) const;
  // Elements of a rank's share of the group, with padding.
  std::int64_t share(std::size_t group) const { return shares_[group]; }
  std::int64_t local_offset(std::size_t group) const { return local_offsets_[group]; }
  std::int64_t local_count() const { return local_count_; }
  // Of the padded order, in which every group's shares lie end to end.
  std::int64_t padded_offset(std::size_t group) const { return local_offsets_[group] * shards_; }
  std::int64_t padded_count() const { return local_count_ * shards_; }
  // This rank's piece of each group that it holds anything of, in rising order.
  const std::vector<Piece>& pieces() const { return pieces_; }

 private:
  int shards_;
  std::vector<ParameterGroup> groups_;
  std::vector<std::int64_t> shares_, local_offsets_;
  std::int64_t local_count_ = 0;
  std::vector<Piece> pieces_;
};

}  // namespace tinyllama
