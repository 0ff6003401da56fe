// One fp32 value per parameter, on the device, in the flat order of ParameterLayout: weights, gradients or a moment. Weights also have a copy
// rounded to the device's compute type, where that is not f32: what products read.
#pragma once
#include <cstdint>
#include <memory>

#include "native/device/device.h"

namespace tinyllama {

class ParameterBuffer {
 public:
  enum class Rounded : std::uint8_t { no, yes };

  // Allocates nothing yet. `name` is for messages.
  ParameterBuffer(Device& device, const char* name, std::int64_t count, Rounded rounded = Rounded::no);

  std::int64_t count() const { return count_; }
  bool allocated() const { return buffer_ != nullptr; }

  // Allocates (zero-filled) at the first call.
  float* data();
  // The rounded copy, null where there is none. Whoever changes data() on the device keeps it up to date.
  void* rounded();
  // Elements [offset, offset + rows * columns) in the compute type.
  Tensor compute_matrix(std::int64_t offset, std::int64_t rows, std::int64_t columns);

  // Throws Error unless [offset, offset + length) lies within the buffer.
  void check_range(std::int64_t offset, std::int64_t length) const;

  // Copy `length` elements from `offset` on, after check_range. A buffer that was never allocated reads as zeros.
  void read(std::int64_t offset, std::int64_t length, float* out);
  void write(std::int64_t offset, std::int64_t length, const float* values);

  void fill_zero();
  // Elements [offset, offset + length) from the seed's stream of normal values: element i depends on (seed, i) alone.
  void fill_normal(std::int64_t offset, std::int64_t length, std::uint64_t seed, float deviation);

 private:
  void round(std::int64_t offset, std::int64_t length);

  Device& device_;
  const char* name_;
  std::int64_t count_;
  bool has_rounded_;
  std::unique_ptr<Buffer> buffer_;
  std::unique_ptr<Buffer> rounded_;
};

}  // namespace tinyllama
