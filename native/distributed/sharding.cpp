#include "native/distributed/sharding.h"

#include "native/core/error.h"

namespace tinyllama {

int ranks_per_copy(const Sharding& sharding, int world) {
  if (sharding.strategy == Strategy::none) return 1;
  if (sharding.strategy != Strategy::hsdp) return world;
  require(sharding.shard_size >= 1 && world % sharding.shard_size == 0,
          "hsdp: shard_size (" + std::to_string(sharding.shard_size) + ") must divide the number of ranks (" + std::to_string(world) + ")");
  return sharding.shard_size;
}

}  // namespace tinyllama
