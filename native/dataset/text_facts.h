// What filters ask of a text.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace tinyllama {

// XXH64 (Yann Collet's specification, version 0.1.1): fast, well mixed, the same on every machine.
std::uint64_t xxh64(std::span<const std::uint8_t> bytes, std::uint64_t seed);

// Characters of valid UTF-8: bytes that do not continue one.
std::size_t count_characters(std::span<const std::uint8_t> text);

}  // namespace tinyllama
