// One fp32 value per parameter that a rank holds, on the device: weights, gradients or a moment. With one shard, of all parameters in their flat order.
#pragma once
#include <cstdint>
#include <memory>

#include "native/device/device.h"
#include "native/model/parameter_groups.h"

namespace tinyllama {

class ShardedBuffer {
 public:
  // Allocates nothing yet. `name` is for messages; `shards` must outlive the buffer.
  ShardedBuffer(Device& device, const char* name, const ShardLayout& shards);

  const ShardLayout& shards() const { return shards_; }
  bool allocated() const { return buffer_ != nullptr; }
  // Local storage (ShardLayout's local order), allocated and zero-filled at the first call.
  float* data();

  // Copies the flat elements [offset, offset + length), of which the rank must hold all. A buffer that was never allocated reads as zeros.
  void read(std::int64_t offset, std::int64_t length, float* out);
  // Takes those of the flat elements [offset, offset + length) that the rank holds.
  void write(std::int64_t offset, std::int64_t length, const float* values);
  // Elements [offset, offset + length) that the rank holds, from the seed's stream of normal values: element i depends on (seed, i) alone.
  void fill_normal(std::int64_t offset, std::int64_t length, std::uint64_t seed, float deviation);
  void fill_zero();

 private:
  void check_range(std::int64_t offset, std::int64_t length) const;

  Device& device_;
  const char* name_;
  const ShardLayout& shards_;
  std::unique_ptr<Buffer> buffer_;
};

}  // namespace tinyllama
