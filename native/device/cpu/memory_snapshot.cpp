#include "native/device/cpu/memory_snapshot.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "native/device/host_memory.h"

namespace tinyllama {
namespace {

// Bytes of one work item.
constexpr std::size_t grain = std::size_t{1} << 20;

void copy_parts(const std::vector<MemoryRange>& ranges, std::size_t offset, std::size_t count, std::byte* out) {
  for_parts(ranges, offset, count, [&](const MemoryRange& range, std::size_t from, std::size_t to, std::size_t bytes) {
    if (range.data == nullptr) std::memset(out + to, 0, bytes);
    else std::memcpy(out + to, static_cast<const std::byte*>(range.data) + from, bytes);
  });
}

class LiveMemory final : public MemorySnapshot {
 public:
  explicit LiveMemory(std::vector<MemoryRange> ranges) : ranges_(std::move(ranges)), bytes_(total_bytes(ranges_)) {}
  Place place() const override { return Place::live; }
  std::size_t bytes() const override { return bytes_; }
  const std::byte* fetch(std::size_t offset, std::size_t count, std::byte* staging) override {
    copy_parts(ranges_, offset, count, staging);
    return staging;
  }

 private:
  std::vector<MemoryRange> ranges_;
  std::size_t bytes_;
};

}  // namespace

std::unique_ptr<MemorySnapshot> take_snapshot(ThreadPool& pool, const std::vector<MemoryRange>& ranges) {
  const std::size_t bytes = total_bytes(ranges);
  HostMemory memory = allocate_if_room(bytes);
  if (memory == nullptr) return std::make_unique<LiveMemory>(ranges);
  pool.parallel_for(static_cast<std::int64_t>((bytes + grain - 1) / grain), [&](std::int64_t item, int) {
    const std::size_t offset = static_cast<std::size_t>(item) * grain;
    copy_parts(ranges, offset, std::min(grain, bytes - offset), memory.get() + offset);
  });
  return std::make_unique<HostSnapshot>(std::move(memory), bytes);
}

}  // namespace tinyllama
