// A training run's state as checkpoints see it: three buffers in the flat order of ParameterLayout, of which a rank holds ranges.
#pragma once
#include <cstdint>
#include <vector>

#include "native/core/tensor.h"

namespace tinyllama {

enum class StateKind : std::uint8_t { weights, first_moment, second_moment };

// Elements [offset, offset + count) of the flat order.
struct ElementRange {
  StateKind kind;
  std::int64_t offset, count;
};

// Where a rank holds elements, on its device; zeros where `data` is null.
struct HeldRange {
  ElementRange elements;
  DataType type;
  void* data;

  std::int64_t bytes() const { return elements.count * bytes_of(type); }
};

}  // namespace tinyllama
