// The order of samples as a function: the same as src/data/SampleOrder.ts, bit for bit, which says how it works and why.
#pragma once
#include <array>
#include <cstdint>

namespace tinyllama {

// A permutation of [0, size), of its own for every seed and epoch. All numbers are below 2^53.
class Permutation {
 public:
  Permutation(std::uint64_t size, std::uint64_t seed, std::uint64_t epoch);
  std::uint64_t at(std::uint64_t position) const;

 private:
  std::uint64_t size_;
  int half_bits_;
  std::array<std::uint32_t, 8> keys_;
};

// The block of a global sample index among `blocks` (at least 1): `blocks` samples make an epoch. Remembers the epoch's keys between calls.
class SampleOrder {
 public:
  SampleOrder(std::uint64_t blocks, std::uint64_t seed) : blocks_(blocks), seed_(seed), current_(blocks, seed, 0) {}
  std::uint64_t at(std::uint64_t index) {
    const std::uint64_t epoch = index / blocks_;
    if (epoch != epoch_) {
      current_ = Permutation(blocks_, seed_, epoch);
      epoch_ = epoch;
    }
    return current_.at(index % blocks_);
  }

 private:
  std::uint64_t blocks_, seed_, epoch_ = 0;
  Permutation current_;
};

}  // namespace tinyllama
