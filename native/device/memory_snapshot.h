// What a device's memory held at one moment, kept for threads other than the one that computes. Device::snapshot takes one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace tinyllama {

// Memory of a device; zeros where `data` is null.
struct MemoryRange {
  const void* data;
  std::size_t bytes;
};

class MemorySnapshot {
 public:
  enum class Place : std::uint8_t {
    device,  // a copy in the device's memory
    host,    // a copy in the host's
    live     // no copy, for want of memory: what was asked for must not change as long as this lives
  };
  virtual ~MemorySnapshot() = default;
  virtual Place place() const = 0;
  // The ranges' bytes, end to end.
  virtual std::size_t bytes() const = 0;
  // Bytes [offset, offset + count), count > 0: in memory of the snapshot's, or copied into `staging` (of Device::allocate_staging). Any number of
  // threads may call it, each with staging of its own.
  virtual const std::byte* fetch(std::size_t offset, std::size_t count, std::byte* staging) = 0;
};

// Calls part(range, from, to, count) for each part of the bytes [offset, offset + count) of the ranges end to end: `count` bytes, at `from` in
// that range and at `to` in what was asked for.
template <class Part>
void for_parts(const std::vector<MemoryRange>& ranges, std::size_t offset, std::size_t count, Part&& part) {
  std::size_t start = 0, done = 0;
  for (const MemoryRange& range : ranges) {
    const std::size_t at = offset + done;
    if (done == count) return;
    if (at < start + range.bytes) {
      const std::size_t from = at - start, part_bytes = range.bytes - from < count - done ? range.bytes - from : count - done;
      part(range, from, done, part_bytes);
      done += part_bytes;
    }
    start += range.bytes;
  }
}

inline std::size_t total_bytes(const std::vector<MemoryRange>& ranges) {
  std::size_t sum = 0;
  for (const MemoryRange& range : ranges) sum += range.bytes;
  return sum;
}

}  // namespace tinyllama
