// The compression function by the SHA extensions. The state lies in two registers as the instructions want it, ABEF and CDGH.
#include <immintrin.h>

#include "native/checkpoint/sha256.h"

namespace tinyllama {

void sha256_blocks_shani(Sha256State& state, const std::uint8_t* bytes, std::size_t blocks) {
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
  auto* halves = reinterpret_cast<__m128i*>(state.data());
  const __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(halves), 0xb1), efgh = _mm_shuffle_epi32(_mm_loadu_si128(halves + 1), 0x1b);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
  for (; blocks > 0; --blocks, bytes += 64) {
    const __m128i before_abef = abef, before_cdgh = cdgh;
    __m128i message[4];
    for (int word = 0; word < 4; ++word)
      message[word] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes) + word), swap);
#pragma GCC unroll 16
    for (int group = 0; group < 16; ++group) {  // of four rounds
      const __m128i words = message[group % 4];
      __m128i sum = _mm_add_epi32(words, _mm_loadu_si128(reinterpret_cast<const __m128i*>(sha256_constants.data()) + group));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      sum = _mm_shuffle_epi32(sum, 0x0e);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, sum);
      if (group >= 12) continue;
      // The words sixteen further on.
      const __m128i w4 = message[(group + 1) % 4], w8 = message[(group + 2) % 4], w12 = message[(group + 3) % 4];
      const __m128i partial = _mm_add_epi32(_mm_sha256msg1_epu32(words, w4), _mm_alignr_epi8(w12, w8, 4));
      message[group % 4] = _mm_sha256msg2_epu32(partial, w12);
    }
    abef = _mm_add_epi32(abef, before_abef);
    cdgh = _mm_add_epi32(cdgh, before_cdgh);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(halves, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128(halves + 1, _mm_alignr_epi8(dchg, feba, 8));
}

}  // namespace tinyllama
