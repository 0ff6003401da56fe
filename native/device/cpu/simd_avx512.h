// Sixteen floats at a time: AVX-512 (F, BW, VL, DQ). Included by *_avx512.cpp alone; see simd_avx2.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

// GCC 12's own intrinsics start from undefined registers and warn about it wherever they are inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace tinyllama {
namespace {

struct Avx512 {
  using Register = __m512;
  static constexpr int width = 16;
  static constexpr const char* name = "avx512";
  static constexpr int tile_rows = 12, tile_vectors = 2;  // 24 sums of 32 registers

  static Register zero() { return _mm512_setzero_ps(); }
  static Register set(float value) { return _mm512_set1_ps(value); }
  static Register broadcast(const float* at) { return _mm512_set1_ps(*at); }
  static Register load(const float* at) { return _mm512_loadu_ps(at); }
  static void store(float* at, Register value) { _mm512_storeu_ps(at, value); }
  static Register load_part(const float* at, int count) { return _mm512_maskz_loadu_ps(mask(count), at); }
  static void store_part(float* at, int count, Register value) { _mm512_mask_storeu_ps(at, mask(count), value); }

  static Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  static Register sub(Register a, Register b) { return _mm512_sub_ps(a, b); }
  static Register mul(Register a, Register b) { return _mm512_mul_ps(a, b); }
  static Register div(Register a, Register b) { return _mm512_div_ps(a, b); }
  static Register sqrt(Register a) { return _mm512_sqrt_ps(a); }
  static Register fma(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  static Register max(Register a, Register b) { return _mm512_max_ps(a, b); }
  static Register min(Register a, Register b) { return _mm512_min_ps(a, b); }
  static Register round(Register a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Register scale(Register value, Register exponent) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(value), _mm512_slli_epi32(_mm512_cvtps_epi32(exponent), 23)));
  }
  static Register above(Register x, Register limit, Register value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLE_UQ), value);
  }
  static float sum(Register a) { return _mm512_reduce_add_ps(a); }
  static float maximum(Register a) { return _mm512_reduce_max_ps(a); }

  struct DoubleSum {
    __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
    void add_product(Register a, Register b) {
      low = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(a)), _mm512_cvtps_pd(_mm512_castps512_ps256(b)), low);
      high = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(b, 1)), high);
    }
    double total() const { return _mm512_reduce_add_pd(_mm512_add_pd(low, high)); }
  };

 private:
  static __mmask16 mask(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
};

}  // namespace
}  // namespace tinyllama
