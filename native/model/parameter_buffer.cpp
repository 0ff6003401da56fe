#include "native/model/parameter_buffer.h"

#include <algorithm>
#include <string>

#include "native/core/error.h"

namespace tinyllama {

ParameterBuffer::ParameterBuffer(Device& device, const char* name, std::int64_t count, Rounded rounded)
    : device_(device), name_(name), count_(count), has_rounded_(rounded == Rounded::yes && device.compute_type() != DataType::f32) {}

float* ParameterBuffer::data() {
  if (!buffer_) buffer_ = device_.allocate(static_cast<std::size_t>(count_) * sizeof(float));
  return static_cast<float*>(buffer_->data());
}

void* ParameterBuffer::rounded() {
  if (!has_rounded_) return nullptr;
  if (!rounded_) rounded_ = device_.allocate(static_cast<std::size_t>(count_ * bytes_of(device_.compute_type())));
  return rounded_->data();
}

Tensor ParameterBuffer::compute_matrix(std::int64_t offset, std::int64_t rows, std::int64_t columns) {
  if (!has_rounded_) return matrix(data() + offset, rows, columns);
  const DataType type = device_.compute_type();
  return matrix(static_cast<std::byte*>(rounded()) + offset * bytes_of(type), type, rows, columns);
}

void ParameterBuffer::check_range(std::int64_t offset, std::int64_t length) const {
  require(offset >= 0 && length >= 0 && offset <= count_ && length <= count_ - offset,
          std::string(name_) + ": elements [" + std::to_string(offset) + ", " + std::to_string(offset) + " + " + std::to_string(length) +
              ") lie outside the " + std::to_string(count_) + " parameters");
}

void ParameterBuffer::read(std::int64_t offset, std::int64_t length, float* out) {
  check_range(offset, length);
  if (allocated()) {
    device_.copy_out(out, data() + offset, static_cast<std::size_t>(length) * sizeof(float));
    device_.synchronize();
  } else {
    std::fill_n(out, length, 0.0f);
  }
}

void ParameterBuffer::write(std::int64_t offset, std::int64_t length, const float* values) {
  check_range(offset, length);
  device_.copy_in(data() + offset, values, static_cast<std::size_t>(length) * sizeof(float));
  round(offset, length);
  device_.synchronize();
}

void ParameterBuffer::fill_normal(std::int64_t offset, std::int64_t length, std::uint64_t seed, float deviation) {
  check_range(offset, length);
  device_.fill_normal(data() + offset, length, seed, offset, deviation);
  round(offset, length);
}

void ParameterBuffer::round(std::int64_t offset, std::int64_t length) {
  if (has_rounded_) device_.round_weights(compute_matrix(offset, 1, length).data, data() + offset, length);
}

void ParameterBuffer::fill_zero() {
  if (allocated()) device_.fill_zero(data(), static_cast<std::size_t>(count_) * sizeof(float));
}

}  // namespace tinyllama
