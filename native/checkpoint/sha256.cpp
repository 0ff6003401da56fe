#include "native/checkpoint/sha256.h"

#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "native/core/error.h"
#include "native/core/instruction_set.h"

namespace tinyllama {
namespace {

constexpr std::size_t block_bytes = 64;

std::uint32_t big_endian(const std::uint8_t* bytes) {
  return std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 | std::uint32_t{bytes[2]} << 8 | bytes[3];
}

bool has_sha_instructions() {
#if defined(__x86_64__)
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    const bool ssse3 = c >> 9 & 1, sse41 = c >> 19 & 1;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return ssse3 && sse41 && (b >> 29 & 1) != 0 && instruction_set() != InstructionSet::scalar;
  }();
  return has;
#else
  return false;
#endif
}

void compress([[maybe_unused]] Sha256State& state, [[maybe_unused]] const std::uint8_t* bytes, [[maybe_unused]] std::size_t blocks) {
#if defined(__x86_64__)
  if (has_sha_instructions()) return sha256_blocks_shani(state, bytes, blocks);
#endif
  sha256_blocks_portable(state, bytes, blocks);
}

}  // namespace

void sha256_blocks_portable(Sha256State& state, const std::uint8_t* bytes, std::size_t blocks) {
  for (; blocks > 0; --blocks, bytes += block_bytes) {
    std::array<std::uint32_t, 64> w;
    for (std::size_t t = 0; t < 16; ++t) w[t] = big_endian(bytes + 4 * t);
    for (std::size_t t = 16; t < 64; ++t) {
      const std::uint32_t s0 = std::rotr(w[t - 15], 7) ^ std::rotr(w[t - 15], 18) ^ w[t - 15] >> 3;
      const std::uint32_t s1 = std::rotr(w[t - 2], 17) ^ std::rotr(w[t - 2], 19) ^ w[t - 2] >> 10;
      w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (std::size_t t = 0; t < 64; ++t) {
      const std::uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
      const std::uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + sha256_constants[t] + w[t];
      const std::uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
      const std::uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const Sha256State add{a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state[i] += add[i];
  }
}

Digest sha256(const void* bytes, std::size_t count) {
  Sha256State state{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const auto* text = static_cast<const std::uint8_t*>(bytes);
  const std::size_t whole = count / block_bytes * block_bytes, rest = count - whole;
  compress(state, text, whole / block_bytes);
  // The rest, a bit, zeros, and the length in bits.
  std::array<std::uint8_t, 2 * block_bytes> tail{};
  if (rest > 0) std::memcpy(tail.data(), text + whole, rest);
  tail[rest] = 0x80;
  const std::size_t length = rest < block_bytes - 8 ? block_bytes : 2 * block_bytes;
  const std::uint64_t bits = std::uint64_t{count} * 8;
  for (std::size_t i = 0; i < 8; ++i) tail[length - 1 - i] = static_cast<std::uint8_t>(bits >> 8 * i);
  compress(state, tail.data(), length / block_bytes);
  Digest digest;
  for (std::size_t i = 0; i < digest.size(); ++i) digest[i] = static_cast<std::uint8_t>(state[i / 4] >> (24 - 8 * (i % 4)));
  return digest;
}

std::string to_hex(const Digest& digest) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : digest) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

Digest digest_from_hex(const std::string& text) {
  Digest digest;
  const auto value = [&](char digit) -> int {
    if (digit >= '0' && digit <= '9') return digit - '0';
    if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
    throw Error("\"" + text + "\" is no sha256");
  };
  require(text.size() == 64, "\"" + text + "\" is no sha256");
  for (std::size_t i = 0; i < digest.size(); ++i) digest[i] = static_cast<std::uint8_t>(value(text[2 * i]) << 4 | value(text[2 * i + 1]));
  return digest;
}

const char* sha256_implementation() { return has_sha_instructions() ? "sha-ni" : "portable"; }

}  // namespace tinyllama
