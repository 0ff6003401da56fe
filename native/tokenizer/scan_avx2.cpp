#include <immintrin.h>

#include "native/tokenizer/scan.h"

namespace tinyllama {

namespace {

// A table of 128 bytes as eight of 16, each in both halves of a register.
struct Table {
  __m256i rows[8];
  explicit Table(const std::uint8_t* bytes) {
    for (int row = 0; row < 8; ++row) {
      rows[row] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes + 16 * row)));
    }
  }
  // pshufb gives zero where the index has its top bit: after the xor and the saturating sum that is everywhere but in this row.
  __m256i operator[](__m256i index) const {
    __m256i found = _mm256_setzero_si256();
    for (int row = 0; row < 8; ++row) {
      const __m256i inside = _mm256_adds_epu8(_mm256_xor_si256(index, _mm256_set1_epi8(static_cast<char>(row << 4))), _mm256_set1_epi8(0x70));
      found = _mm256_or_si256(found, _mm256_shuffle_epi8(rows[row], inside));
    }
    return found;
  }
};

std::uint64_t mask_of(__m256i bytes) { return static_cast<std::uint32_t>(_mm256_movemask_epi8(bytes)); }

}  // namespace

void scan_avx2(const AsciiPairs& pairs, const std::uint8_t* text, std::size_t words, const ScanBits& bits) {
  const Table left(pairs.left.data()), right(pairs.right.data());
  const __m256i space = _mm256_set1_epi8(' ');
  for (std::size_t word = 0; word < words; ++word) {
    std::uint64_t cuts = 0, spaces = 0, high = 0;
    for (int half = 0; half < 64; half += 32, text += 32) {
      const __m256i before = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(text - 1));
      const __m256i here = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(text));
      const __m256i shared = _mm256_and_si256(left[before], right[here]);
      cuts |= mask_of(_mm256_cmpeq_epi8(shared, _mm256_setzero_si256())) << half;
      spaces |= mask_of(_mm256_cmpeq_epi8(here, space)) << half;
      high |= mask_of(here) << half;
    }
    bits.cuts[word] = cuts;
    bits.spaces[word] = spaces;
    bits.high[word] = high;
  }
}

}  // namespace tinyllama
