#include "native/dataset/sample_order.h"

namespace tinyllama {

namespace {

// MurmurHash3's fmix32.
std::uint32_t mix(std::uint32_t h) {
  h = (h ^ (h >> 16)) * 0x85EBCA6Bu;
  h = (h ^ (h >> 13)) * 0xC2B2AE35u;
  return h ^ (h >> 16);
}

}  // namespace

Permutation::Permutation(std::uint64_t size, std::uint64_t seed, std::uint64_t epoch) : size_(size), half_bits_(1) {
  while ((std::uint64_t{1} << (2 * half_bits_)) < size) ++half_bits_;
  std::uint32_t state = 0x6A09E667u;
  for (const std::uint64_t word : {seed, seed >> 32, epoch, epoch >> 32}) state = mix(state * 0x9E3779B1u + static_cast<std::uint32_t>(word));
  for (std::uint32_t round = 0; round < keys_.size(); ++round) keys_[round] = mix(state + (round + 1) * 0x9E3779B9u);
}

std::uint64_t Permutation::at(std::uint64_t position) const {
  const std::uint32_t mask = (std::uint32_t{1} << half_bits_) - 1;
  std::uint64_t value = position;
  do {
    auto left = static_cast<std::uint32_t>(value >> half_bits_);
    auto right = static_cast<std::uint32_t>(value) & mask;
    for (const std::uint32_t key : keys_) {
      const std::uint32_t next = left ^ (mix(right ^ key) & mask);
      left = right;
      right = next;
    }
    value = (std::uint64_t{left} << half_bits_) + right;
  } while (value >= size_);
  return value;
}

}  // namespace tinyllama
