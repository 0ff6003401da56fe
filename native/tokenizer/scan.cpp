#include "native/tokenizer/scan.h"

#include "native/core/instruction_set.h"

namespace tinyllama {

void scan_scalar(const AsciiPairs& pairs, const std::uint8_t* text, std::size_t words, const ScanBits& bits) {
  std::uint8_t left = pairs.left[text[-1] & 127];
  for (std::size_t word = 0; word < words; ++word, text += 64) {
    std::uint64_t cuts = 0, spaces = 0, high = 0;
    for (int i = 0; i < 64; ++i) {
      const std::uint8_t byte = text[i];
      cuts |= static_cast<std::uint64_t>((left & pairs.right[byte & 127]) == 0) << i;
      spaces |= static_cast<std::uint64_t>(byte == ' ') << i;
      high |= static_cast<std::uint64_t>(byte >> 7) << i;
      left = pairs.left[byte & 127];
    }
    bits.cuts[word] = cuts;
    bits.spaces[word] = spaces;
    bits.high[word] = high;
  }
}

Scan select_scan() {
#if defined(__x86_64__)
  const InstructionSet set = instruction_set();
  if (set == InstructionSet::avx512 && __builtin_cpu_supports("avx512vbmi")) return scan_avx512;
  if (set == InstructionSet::avx512 || set == InstructionSet::avx2) return scan_avx2;
#endif
  return scan_scalar;
}

}  // namespace tinyllama
