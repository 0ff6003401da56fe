// How parameters are shared out among ranks.
#pragma once
#include <cstdint>
#include <string>

namespace tinyllama {

// none: every rank holds everything, gradients are summed over all (data parallel).
// zero2: master weights, moments and summed gradients are shared out; compute weights lie on every rank (Rajbhandari et al. 2020, "ZeRO").
// fsdp: compute weights are shared out too, and a group's are gathered while it is needed (Zhao et al. 2023, "PyTorch FSDP"; ZeRO-3).
// hsdp: fsdp within groups of `shard_size` ranks, which are copies of each other.
enum class Strategy : std::uint8_t { none, zero2, fsdp, hsdp };

struct Sharding {
  Strategy strategy = Strategy::none;
  int shard_size = 0;        // of hsdp: it divides the number of ranks
  bool fixed_order = false;  // gradients are summed micro-batch by micro-batch, in their global order: the same bits on any number of ranks
  // Gradients are summed over ranks after every micro-batch, and each rank keeps its share alone, instead of all until the step's last one.
  bool share_gradients = false;

  bool sums_each_micro_batch() const { return fixed_order || share_gradients; }
};

// How many ranks share one copy. Throws Error where the strategy does not fit the world.
int ranks_per_copy(const Sharding& sharding, int world);

}  // namespace tinyllama
