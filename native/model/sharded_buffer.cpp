#include "native/model/sharded_buffer.h"

#include <algorithm>
#include <string>

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

ShardedBuffer::ShardedBuffer(Device& device, const char* name, const ShardLayout& shards) : device_(device), name_(name), shards_(shards) {}

float* ShardedBuffer::data() {
  if (!buffer_) buffer_ = device_.allocate(static_cast<std::size_t>(shards_.local_count()) * sizeof(float));
  return static_cast<float*>(buffer_->data());
}

void ShardedBuffer::check_range(std::int64_t offset, std::int64_t length) const {
  const ParameterGroup& last = shards_.groups().back();
  const std::int64_t count = last.offset + last.count;
  require(offset >= 0 && length >= 0 && offset <= count && length <= count - offset,
          std::string(name_) + ": " + describe(offset, length) + " lie outside the " + std::to_string(count) + " parameters");
}

void ShardedBuffer::read(std::int64_t offset, std::int64_t length, float* out) {
  check_range(offset, length);
  std::int64_t held = 0;
  for_held(shards_, offset, length, [&](std::int64_t, std::int64_t, std::int64_t count) { held += count; });
  require(held == length, std::string(name_) + ": this rank does not hold all of " + describe(offset, length));
  if (!allocated()) {
    std::fill_n(out, length, 0.0f);
    return;
  }
  for_held(shards_, offset, length, [&](std::int64_t at, std::int64_t local, std::int64_t count) {
    device_.copy_out(out + at, data() + local, static_cast<std::size_t>(count) * sizeof(float));
  });
  device_.synchronize();
}

void ShardedBuffer::write(std::int64_t offset, std::int64_t length, const float* values) {
  check_range(offset, length);
  for_held(shards_, offset, length, [&](std::int64_t at, std::int64_t local, std::int64_t count) {
    device_.copy_in(data() + local, values + at, static_cast<std::size_t>(count) * sizeof(float));
  });
  device_.synchronize();
}

void ShardedBuffer::fill_normal(std::int64_t offset, std::int64_t length, std::uint64_t seed, float deviation) {
  check_range(offset, length);
  for_held(shards_, offset, length, [&](std::int64_t at, std::int64_t local, std::int64_t count) {
    device_.fill_normal(data() + local, count, seed, offset + at, deviation);
  });
}

void ShardedBuffer::fill_zero() {
  if (allocated()) device_.fill_zero(data(), static_cast<std::size_t>(shards_.local_count()) * sizeof(float));
}

}  // namespace tinyllama
