// What each rank holds in a test, known to all of them.
#pragma once
#include <cstdint>
#include <vector>

#include "test/native/device_check.h"

namespace tinyllama::check {

// Of rank r in case `number`.
inline std::vector<float> held(int rank, std::int64_t count, std::uint64_t number) {
  return values(count, number * 64 + static_cast<std::uint64_t>(rank));
}

// The sum over ranks, from rank 0 on, in fp32: the order that every backend on the host promises.
inline std::vector<float> summed(int size, std::int64_t count, std::uint64_t number) {
  std::vector<float> sum = held(0, count, number);
  for (int r = 1; r < size; ++r) {
    const std::vector<float> more = held(r, count, number);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
  }
  return sum;
}

}  // namespace tinyllama::check
