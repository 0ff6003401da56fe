// Finds the places where a text may be cut: every boundary between ASCII characters that no piece of the vocabulary spans.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

namespace tinyllama {

// Which ASCII characters stand side by side in pieces, as eight groups of left neighbours: left[a] & right[b] is not zero when some piece holds
// "ab" (then also for a few pairs that no piece holds; a boundary that is not cut costs time, never exactness). ' ' stands for ▁.
struct AsciiPairs {
  alignas(64) std::array<std::uint8_t, 128> left{};
  alignas(64) std::array<std::uint8_t, 128> right{};
};

// One bit a byte of text, 64 bytes a word, the lowest bit first.
struct ScanBits {
  std::uint64_t* cuts;    // a piece may begin here: the boundary before this byte can be cut. Says nothing where either byte is not ASCII
  std::uint64_t* spaces;  // the byte is ' '
  std::uint64_t* high;    // the byte is not ASCII
};

// Fills `words` words. `text` must be readable from text[-1] to text[64 * words - 1].
using Scan = void (*)(const AsciiPairs& pairs, const std::uint8_t* text, std::size_t words, const ScanBits& bits);

void scan_scalar(const AsciiPairs& pairs, const std::uint8_t* text, std::size_t words, const ScanBits& bits);
void scan_avx2(const AsciiPairs& pairs, const std::uint8_t* text, std::size_t words, const ScanBits& bits);
void scan_avx512(const AsciiPairs& pairs, const std::uint8_t* text, std::size_t words, const ScanBits& bits);  // needs VBMI too

// The best that this machine and TINYLLAMA_SIMD allow.
Scan select_scan();

}  // namespace tinyllama
