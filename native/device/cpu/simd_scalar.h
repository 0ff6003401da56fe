// Plain C++, four floats side by side for the compiler to do with what the base instruction set has. See simd_avx2.h.
#pragma once
#include <cstdint>

namespace tinyllama {
namespace {

struct Scalar {
  using Register = float __attribute__((vector_size(16)));
  using Integers = std::int32_t __attribute__((vector_size(16)));
  static constexpr int width = 4;
  static constexpr const char* name = "scalar";
  static constexpr int tile_rows = 4, tile_vectors = 2;  // 8 sums of 16 registers

  static Register zero() { return Register{}; }
  static Register set(float value) { return Register{value, value, value, value}; }
  static Register broadcast(const float* at) { return set(*at); }
  static Register load(const float* at) {
    Register value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
  }
  static void store(float* at, Register value) { __builtin_memcpy(at, &value, sizeof value); }
  static Register load_part(const float* at, int count) {
    Register value{};
    for (int lane = 0; lane < count; ++lane) value[lane] = at[lane];
    return value;
  }
  static void store_part(float* at, int count, Register value) {
    for (int lane = 0; lane < count; ++lane) at[lane] = value[lane];
  }

  static Register add(Register a, Register b) { return a + b; }
  static Register sub(Register a, Register b) { return a - b; }
  static Register mul(Register a, Register b) { return a * b; }
  static Register div(Register a, Register b) { return a / b; }
  static Register sqrt(Register a) {
    return Register{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]), __builtin_sqrtf(a[3])};
  }
  // Two roundings: the base instruction set of x86-64 has no fused multiply-add.
  static Register fma(Register a, Register b, Register c) { return a * b + c; }
  static Register max(Register a, Register b) { return select(a > b, a, b); }
  static Register min(Register a, Register b) { return select(a < b, a, b); }
  // To nearest, ties to even, for |a| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
  static Register round(Register a) {
    const Register shift = set(12582912.f);
    return (a + shift) - shift;
  }
  static Register scale(Register value, Register exponent) {
    return (Register)((Integers)value + (__builtin_convertvector(exponent, Integers) << 23));
  }
  static Register above(Register x, Register limit, Register value) { return (Register)(~(Integers)(x <= limit) & (Integers)value); }
  static float sum(Register a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float maximum(Register a) {
    const float left = a[0] > a[2] ? a[0] : a[2], right = a[1] > a[3] ? a[1] : a[3];
    return left > right ? left : right;
  }

  struct DoubleSum {
    double lanes[width] = {};
    void add_product(Register a, Register b) {
      for (int lane = 0; lane < width; ++lane) lanes[lane] += static_cast<double>(a[lane]) * static_cast<double>(b[lane]);
    }
    double total() const { return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]); }
  };

 private:
  static Register select(Integers mask, Register yes, Register no) { return (Register)((mask & (Integers)yes) | (~mask & (Integers)no)); }
};

}  // namespace
}  // namespace tinyllama
