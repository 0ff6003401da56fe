#include "native/model/sharded_buffer.h"

#include <algorithm>
#include <string>
#include <vector>

#include "native/core/bfloat16.h"
#include "native/core/error.h"

namespace tinyllama {

namespace {

// Calls body(offset within the range, local position, length) for each part of the flat range that the rank holds.
template <class Body>
void for_held(const ShardLayout& shards, std::int64_t offset, std::int64_t length, Body&& body) {
  for (const ShardLayout::Piece& piece : shards.pieces()) {
    const std::int64_t first = std::max(offset, piece.flat), end = std::min(offset + length, piece.flat + piece.count);
    if (first < end) body(first - offset, piece.local + first - piece.flat, end - first);
  }
}

std::string describe(std::int64_t offset, std::int64_t length) {
  return "elements [" + std::to_string(offset) + ", " + std::to_string(offset) + " + " + std::to_string(length) + ")";
}

}  // namespace

ShardedBuffer::ShardedBuffer(Device& device, const char* name, const ShardLayout& shards, DataType type)
    : device_(device), name_(name), shards_(shards), type_(type) {}

void* ShardedBuffer::at(std::int64_t local) {
  if (!buffer_) buffer_ = device_.allocate(static_cast<std::size_t>(shards_.local_count() * bytes_of(type_)));
  return static_cast<std::byte*>(buffer_->data()) + local * bytes_of(type_);
}

float* ShardedBuffer::data() {
  require(type_ == DataType::f32, std::string(name_) + ": not of fp32");
  return static_cast<float*>(at(0));
}

std::uint16_t* ShardedBuffer::halves() {
  require(type_ == DataType::bf16, std::string(name_) + ": not of bf16");
  return static_cast<std::uint16_t*>(at(0));
}

void ShardedBuffer::check_range(std::int64_t offset, std::int64_t length) const {
  const ParameterGroup& last = shards_.groups().back();
  const std::int64_t count = last.offset + last.count;
  require(offset >= 0 && length >= 0 && offset <= count && length <= count - offset,
          std::string(name_) + ": " + describe(offset, length) + " lie outside the " + std::to_string(count) + " parameters");
}

void ShardedBuffer::copy_out(std::int64_t offset, std::int64_t length, void* out) {
  for_held(shards_, offset, length, [&](std::int64_t first, std::int64_t local, std::int64_t count) {
    device_.copy_out(static_cast<std::byte*>(out) + first * bytes_of(type_), at(local), static_cast<std::size_t>(count * bytes_of(type_)));
  });
  device_.synchronize();
}

void ShardedBuffer::copy_in(std::int64_t offset, std::int64_t length, const void* values) {
  for_held(shards_, offset, length, [&](std::int64_t first, std::int64_t local, std::int64_t count) {
    device_.copy_in(at(local), static_cast<const std::byte*>(values) + first * bytes_of(type_), static_cast<std::size_t>(count * bytes_of(type_)));
  });
  device_.synchronize();
}

void ShardedBuffer::read(std::int64_t offset, std::int64_t length, float* out) {
  check_range(offset, length);
  std::int64_t held = 0;
  for_held(shards_, offset, length, [&](std::int64_t, std::int64_t, std::int64_t count) { held += count; });
  require(held == length, std::string(name_) + ": this rank does not hold all of " + describe(offset, length));
  if (!allocated()) {
    std::fill_n(out, length, 0.0f);
  } else if (type_ == DataType::f32) {
    copy_out(offset, length, out);
  } else {
    std::vector<std::uint16_t> halves(static_cast<std::size_t>(length));
    copy_out(offset, length, halves.data());
    std::transform(halves.begin(), halves.end(), out, [](std::uint16_t half) { return widen(half); });
  }
}

void ShardedBuffer::write(std::int64_t offset, std::int64_t length, const float* values) {
  check_range(offset, length);
  if (type_ == DataType::f32) {
    copy_in(offset, length, values);
  } else {
    std::vector<std::uint16_t> halves(static_cast<std::size_t>(length));
    std::transform(values, values + length, halves.begin(), [](float value) { return round_to_nearest(value); });
    copy_in(offset, length, halves.data());
  }
}

void ShardedBuffer::fill_normal(std::int64_t offset, std::int64_t length, std::uint64_t seed, float deviation) {
  check_range(offset, length);
  constexpr std::int64_t part = std::int64_t{1} << 22;  // of what is rounded
  const std::unique_ptr<Buffer> wide = type_ == DataType::f32 ? nullptr : device_.allocate(static_cast<std::size_t>(std::min(length, part)) * sizeof(float));
  for_held(shards_, offset, length, [&](std::int64_t first, std::int64_t local, std::int64_t count) {
    if (!wide) {
      device_.fill_normal(data() + local, count, seed, offset + first, deviation);
      return;
    }
    for (std::int64_t done = 0; done < count; done += part) {
      const std::int64_t size = std::min(part, count - done);
      device_.fill_normal(static_cast<float*>(wide->data()), size, seed, offset + first + done, deviation);
      device_.round_weights(halves() + local + done, static_cast<const float*>(wide->data()), size);
    }
  });
  if (wide) device_.synchronize();
}

void ShardedBuffer::fill_zero() {
  if (allocated()) device_.fill_zero(at(0), buffer_->bytes());
}

}  // namespace tinyllama
