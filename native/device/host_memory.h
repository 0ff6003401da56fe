// Memory of the host for snapshots: large, not zeroed, and asked for only where there is room.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <memory>

#include "native/device/memory_snapshot.h"

namespace tinyllama {

// Bytes that this process may still take: of the machine's, and of the control groups it is in (a container, a job). What is not told, which is all of
// it where the system is no Linux, counts as without limit.
std::size_t available_host_memory();

struct FreeMemory {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using HostMemory = std::unique_ptr<std::byte, FreeMemory>;

// Null where there is no room for `bytes` and for some that others will need meanwhile.
HostMemory allocate_if_room(std::size_t bytes);

// A snapshot in memory of the host.
class HostSnapshot final : public MemorySnapshot {
 public:
  HostSnapshot(HostMemory memory, std::size_t bytes) : memory_(std::move(memory)), bytes_(bytes) {}
  Place place() const override { return Place::host; }
  std::size_t bytes() const override { return bytes_; }
  const std::byte* fetch(std::size_t offset, std::size_t, std::byte*) override { return memory_.get() + offset; }

 private:
  HostMemory memory_;
  std::size_t bytes_;
};

}  // namespace tinyllama
