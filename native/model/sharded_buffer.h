// One value per parameter that a rank holds, on the device: weights, gradients or a moment. With one shard, of all parameters in their flat order.
// Values are fp32; weights and moments may be bf16 instead, and go in and out as fp32 all the same: out exactly, in rounded to the nearest, so that
// what came out goes in exactly.
#pragma once
#include <cstdint>
#include <memory>

#include "native/device/device.h"
#include "native/model/parameter_groups.h"

namespace tinyllama {

class ShardedBuffer {
 public:
  // Allocates nothing yet. `name` is for messages; `shards` must outlive the buffer.
  ShardedBuffer(Device& device, const char* name, const ShardLayout& shards, DataType type = DataType::f32);

  const ShardLayout& shards() const { return shards_; }
  bool allocated() const { return buffer_ != nullptr; }
  DataType type() const { return type_; }
  // Element `local` of the local storage (ShardLayout's local order), which is allocated and zero-filled at the first call.
  void* at(std::int64_t local);
  // The storage of a buffer of fp32, or of bf16.
  float* data();
  std::uint16_t* halves();

  // Copies the flat elements [offset, offset + length), of which the rank must hold all. A buffer that was never allocated reads as zeros.
  void read(std::int64_t offset, std::int64_t length, float* out);
  // Takes those of the flat elements [offset, offset + length) that the rank holds.
  void write(std::int64_t offset, std::int64_t length, const float* values);
  // Elements [offset, offset + length) that the rank holds, from the seed's stream of normal values: element i depends on (seed, i) alone.
  void fill_normal(std::int64_t offset, std::int64_t length, std::uint64_t seed, float deviation);
  void fill_zero();

 private:
  void check_range(std::int64_t offset, std::int64_t length) const;
  void copy_out(std::int64_t offset, std::int64_t length, void* out);
  void copy_in(std::int64_t offset, std::int64_t length, const void* values);

  Device& device_;
  const char* name_;
  const ShardLayout& shards_;
  DataType type_;
  std::unique_ptr<Buffer> buffer_;
};

}  // namespace tinyllama
