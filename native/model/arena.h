// Working memory of a model: one allocation on the device, cut into tensors by a plan that is cheap to redo for every batch shape.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "native/core/tensor.h"
#include "native/device/device.h"

namespace tinyllama {

// Hands out consecutive 256-byte aligned pieces. Without a base it only counts, so the same code measures and places.
class ArenaPlan {
 public:
  explicit ArenaPlan(void* base) : base_(static_cast<std::byte*>(base)) {}

  template <typename T>
  T* take(std::int64_t count) {
    std::byte* piece = base_ ? base_ + used_ : nullptr;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    used_ += (bytes + 255) / 256 * 256;
    return reinterpret_cast<T*>(piece);
  }
  Tensor take_matrix(DataType type, std::int64_t rows, std::int64_t columns) {
    return matrix(take<std::byte>(rows * columns * bytes_of(type)), type, rows, columns);
  }
  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  std::size_t used_ = 0;
};

class Arena {
 public:
  explicit Arena(Device& device) : device_(device) {}

  // At least `bytes`, of undefined content. Grows when needed and never shrinks; what an earlier call returned is then invalid.
  void* reserve(std::size_t bytes) {
    if (!buffer_ || buffer_->bytes() < bytes) {
      buffer_.reset();
      buffer_ = device_.allocate(bytes);
      ++generation_;
    }
    return buffer_->data();
  }
  // Counts the allocations: a new one may lie elsewhere.
  int generation() const { return generation_; }
  std::size_t bytes() const { return buffer_ ? buffer_->bytes() : 0; }

 private:
  Device& device_;
  std::unique_ptr<Buffer> buffer_;
  int generation_ = 0;
};

}  // namespace tinyllama
