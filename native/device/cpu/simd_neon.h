// Four floats at a time: Advanced SIMD of arm64. Included by *_neon.cpp alone; see simd_avx2.h.
#pragma once
#include <arm_neon.h>

#include <cstdint>

namespace tinyllama {
namespace {

struct Neon {
  using Register = float32x4_t;
  static constexpr int width = 4;
  static constexpr const char* name = "neon";
  static constexpr int tile_rows = 8, tile_vectors = 3;  // 24 sums of 32 registers

  static Register zero() { return vdupq_n_f32(0.f); }
  static Register set(float value) { return vdupq_n_f32(value); }
  static Register broadcast(const float* at) { return vld1q_dup_f32(at); }
  static Register load(const float* at) { return vld1q_f32(at); }
  static void store(float* at, Register value) { vst1q_f32(at, value); }
  static Register load_part(const float* at, int count) {
    float lanes[width] = {};
    for (int lane = 0; lane < count; ++lane) lanes[lane] = at[lane];
    return vld1q_f32(lanes);
  }
  static void store_part(float* at, int count, Register value) {
    float lanes[width];
    vst1q_f32(lanes, value);
    for (int lane = 0; lane < count; ++lane) at[lane] = lanes[lane];
  }

  static Register add(Register a, Register b) { return vaddq_f32(a, b); }
  static Register sub(Register a, Register b) { return vsubq_f32(a, b); }
  static Register mul(Register a, Register b) { return vmulq_f32(a, b); }
  static Register div(Register a, Register b) { return vdivq_f32(a, b); }
  static Register sqrt(Register a) { return vsqrtq_f32(a); }
  static Register fma(Register a, Register b, Register c) { return vfmaq_f32(c, a, b); }
  static Register max(Register a, Register b) { return vmaxq_f32(a, b); }
  static Register min(Register a, Register b) { return vminq_f32(a, b); }
  static Register round(Register a) { return vrndnq_f32(a); }
  static Register scale(Register value, Register exponent) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(value), vshlq_n_s32(vcvtnq_s32_f32(exponent), 23)));
  }
  static Register above(Register x, Register limit, Register value) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), vcleq_f32(x, limit)));
  }
  static float sum(Register a) { return vaddvq_f32(a); }
  static float maximum(Register a) { return vmaxvq_f32(a); }

  struct DoubleSum {
    float64x2_t low = vdupq_n_f64(0), high = vdupq_n_f64(0);
    void add_product(Register a, Register b) {
      low = vfmaq_f64(low, vcvt_f64_f32(vget_low_f32(a)), vcvt_f64_f32(vget_low_f32(b)));
      high = vfmaq_f64(high, vcvt_high_f64_f32(a), vcvt_high_f64_f32(b));
    }
    double total() const { return vaddvq_f64(vaddq_f64(low, high)); }
  };
};

}  // namespace
}  // namespace tinyllama
