// Eight floats at a time: AVX2 with FMA. Included by *_avx2.cpp alone.
//
// Every simd_*.h offers one type with the same members; the kernels are templates on it. The types live in unnamed namespaces, so that no
// instantiation compiled for one instruction set can stand in for another's at link time.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace tinyllama {
namespace {

struct Avx2 {
  using Register = __m256;
  static constexpr int width = 8;
  static constexpr const char* name = "avx2";
  static constexpr int tile_rows = 6, tile_vectors = 2;  // 12 sums of 16 registers

  static Register zero() { return _mm256_setzero_ps(); }
  static Register set(float value) { return _mm256_set1_ps(value); }
  static Register broadcast(const float* at) { return _mm256_broadcast_ss(at); }
  static Register load(const float* at) { return _mm256_loadu_ps(at); }
  static void store(float* at, Register value) { _mm256_storeu_ps(at, value); }
  // The first `count` elements, 0 < count < width; the others read as zero.
  static Register load_part(const float* at, int count) { return _mm256_maskload_ps(at, mask(count)); }
  static void store_part(float* at, int count, Register value) { _mm256_maskstore_ps(at, mask(count), value); }

  static Register add(Register a, Register b) { return _mm256_add_ps(a, b); }
  static Register sub(Register a, Register b) { return _mm256_sub_ps(a, b); }
  static Register mul(Register a, Register b) { return _mm256_mul_ps(a, b); }
  static Register div(Register a, Register b) { return _mm256_div_ps(a, b); }
  static Register sqrt(Register a) { return _mm256_sqrt_ps(a); }
  static Register fma(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
  // A NaN in b goes through.
  static Register max(Register a, Register b) { return _mm256_max_ps(a, b); }
  static Register min(Register a, Register b) { return _mm256_min_ps(a, b); }
  static Register round(Register a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // value * 2^exponent, for whole exponents that keep it a normal number.
  static Register scale(Register value, Register exponent) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), _mm256_slli_epi32(_mm256_cvtps_epi32(exponent), 23)));
  }
  // value, or zero where x <= limit.
  static Register above(Register x, Register limit, Register value) {
    return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLE_UQ), value);
  }
  static float sum(Register a) {
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  static float maximum(Register a) {
    const __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
  }

  // A sum of products in double precision.
  struct DoubleSum {
    __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
    void add_product(Register a, Register b) {
      low = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_castps256_ps128(b)), low);
      high = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)), _mm256_cvtps_pd(_mm256_extractf128_ps(b, 1)), high);
    }
    double total() const {
      const __m256d both = _mm256_add_pd(low, high);
      const __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(both), _mm256_extractf128_pd(both, 1));
      return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
    }
  };

 private:
  static __m256i mask(int count) {
    alignas(32) static constexpr std::int32_t bits[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits + 8 - count));
  }
};

}  // namespace
}  // namespace tinyllama
