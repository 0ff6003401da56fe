#include <immintrin.h>

#include "native/tokenizer/scan.h"

namespace tinyllama {

// VBMI looks 64 bytes up in a table of 128 at once.
__attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi"))) void scan_avx512(const AsciiPairs& pairs, const std::uint8_t* text, std::size_t words,
                                                                                const ScanBits& bits) {
  const __m512i left_low = _mm512_load_si512(pairs.left.data()), left_high = _mm512_load_si512(pairs.left.data() + 64);
  const __m512i right_low = _mm512_load_si512(pairs.right.data()), right_high = _mm512_load_si512(pairs.right.data() + 64);
  const __m512i space = _mm512_set1_epi8(' ');
  for (std::size_t word = 0; word < words; ++word, text += 64) {
    const __m512i before = _mm512_loadu_si512(text - 1), here = _mm512_loadu_si512(text);
    const __m512i left = _mm512_permutex2var_epi8(left_low, before, left_high);  // reads the low 7 bits of each byte
    const __m512i right = _mm512_permutex2var_epi8(right_low, here, right_high);
    bits.cuts[word] = _mm512_testn_epi8_mask(left, right);
    bits.spaces[word] = _mm512_cmpeq_epi8_mask(here, space);
    bits.high[word] = _mm512_movepi8_mask(here);
  }
}

}  // namespace tinyllama
