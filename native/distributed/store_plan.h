// How much memory a ParameterStore takes for what: the arithmetic behind its allocations, and behind forecasts for worlds of any size.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "native/core/tensor.h"
#include "native/distributed/sharding.h"
#include "native/model/parameter_groups.h"

namespace tinyllama {

// Bytes on one rank.
struct StorePlan {
  std::int64_t masters = 0;
  std::int64_t resident = 0;                  // rounded, widened, or a copy of all shares
  std::array<std::int64_t, 4> slots{};        // for groups that are gathered while they are needed: see slot_of
  std::int64_t gains = 0;                     // fp32, where neither masters nor copies have them so
  std::int64_t gradients = 0;                 // this rank's, of all parameters until the step's last micro-batch
  std::array<std::int64_t, 4> gradient_slots{};  // or of some groups, summed over ranks after every micro-batch
  std::int64_t sums = 0;                      // then: this rank's share of the gradients summed so far
  std::int64_t exchange = 0;                  // fixed order: gradients of every rank, a group or a part of one at a time
  std::int64_t norm_sums = 0;                 // a sum of squares per block of this rank's share

  std::int64_t weights() const { return masters + resident + slots[0] + slots[1] + slots[2] + slots[3] + gains; }
  std::int64_t gradient_total() const {
    return gradients + gradient_slots[0] + gradient_slots[1] + gradient_slots[2] + gradient_slots[3] + sums + exchange + norm_sums;
  }
};

StorePlan plan_store(const ParameterLayout& layout, const ShardLayout& shards, const Sharding& sharding, int world, DataType compute_type,
                     DataType state_type);

// Where a group lies that is gathered. Neighbouring layers lie in different slots. Embedding and head share one: no pass needs both, but where they are
// the same; then only the final norm is left of the last group.
std::size_t slot_of(std::size_t group, std::size_t groups, bool tied);

// Elements of a group that a rank sends to all others at a time, in fixed order, where several ranks hold the same share.
std::int64_t exchange_part(const ShardLayout& shards, std::size_t group, int world);

}  // namespace tinyllama
