// Snapshots of the GPU's memory: what they hold is what was there when they were taken, whatever is issued later, wherever the copy lies; several
// threads read one at the same time; its memory serves the next.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "native/device/cuda/cuda_check.h"
#include "native/device/cuda/snapshot_memory.h"

namespace tinyllama {
namespace {

int failures = 0;

void check(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

class DeviceBytes {
 public:
  explicit DeviceBytes(std::size_t count) : count_(count) { CHECK_CUDA(cudaMalloc(&data_, count)); }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  void* data() const { return data_; }
  std::size_t count() const { return count_; }

 private:
  void* data_ = nullptr;
  std::size_t count_;
};

// Different at each place, and for each seed.
std::vector<std::uint8_t> bytes_of(std::size_t count, std::uint32_t seed) {
  std::vector<std::uint8_t> bytes(count);
  for (std::size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::uint8_t>((i * 2654435761u + seed * 97u) >> 11);
  return bytes;
}

struct Memory {
  Memory() : first(10'000'001), second(70'000'003) { CHECK_CUDA(cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking)); }
  ~Memory() { cudaStreamDestroy(compute); }
  // What the ranges hold, end to end; zeros lie between the two.
  std::vector<std::uint8_t> fill(std::uint32_t seed) {
    std::vector<std::uint8_t> expected = bytes_of(first.count(), seed), rest = bytes_of(second.count(), seed + 1);
    CHECK_CUDA(cudaMemcpyAsync(first.data(), expected.data(), expected.size(), cudaMemcpyHostToDevice, compute));
    CHECK_CUDA(cudaMemcpyAsync(second.data(), rest.data(), rest.size(), cudaMemcpyHostToDevice, compute));
    CHECK_CUDA(cudaStreamSynchronize(compute));
    expected.resize(expected.size() + zeros, 0);
    expected.insert(expected.end(), rest.begin(), rest.end());
    return expected;
  }
  void overwrite() {
    CHECK_CUDA(cudaMemsetAsync(first.data(), 0xee, first.count(), compute));
    CHECK_CUDA(cudaMemsetAsync(second.data(), 0xee, second.count(), compute));
  }
  std::vector<MemoryRange> ranges() const { return {{first.data(), first.count()}, {nullptr, zeros}, {second.data(), second.count()}}; }

  static constexpr std::size_t zeros = 1'000'000;
  DeviceBytes first, second;
  cudaStream_t compute = nullptr;
};

// All of a snapshot, by several threads with staging of their own.
std::vector<std::uint8_t> read(SnapshotMemory& memory, MemorySnapshot& snapshot) {
  constexpr std::size_t piece = 3'000'017;
  std::vector<std::uint8_t> bytes(snapshot.bytes());
  std::atomic<std::size_t> next{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const std::unique_ptr<Buffer> staging = memory.staging(piece);
      for (std::size_t at = next.fetch_add(piece); at < bytes.size(); at = next.fetch_add(piece)) {
        const std::size_t count = std::min(piece, bytes.size() - at);
        std::memcpy(bytes.data() + at, snapshot.fetch(at, count, static_cast<std::byte*>(staging->data())), count);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return bytes;
}

void holds_what_was_there(SnapshotMemory& memory, MemorySnapshot::Place place, const std::string& name) {
  Memory state;
  for (std::uint32_t round = 1; round <= 3; ++round) {
    const std::vector<std::uint8_t> expected = state.fill(round);
    const std::unique_ptr<MemorySnapshot> snapshot = memory.take(state.compute, state.ranges());
    state.overwrite();
    check(snapshot->place() == place, name + ": its place");
    check(snapshot->bytes() == expected.size(), name + ": its size");
    check(read(memory, *snapshot) == expected, name + ": round " + std::to_string(round));
  }
}

// Two at once, as two saves under way have them.
void two_at_once(SnapshotMemory& memory) {
  Memory state;
  const std::vector<std::uint8_t> before = state.fill(11);
  const std::unique_ptr<MemorySnapshot> first = memory.take(state.compute, state.ranges());
  const std::vector<std::uint8_t> after = state.fill(12);
  const std::unique_ptr<MemorySnapshot> second = memory.take(state.compute, state.ranges());
  state.overwrite();
  check(read(memory, *second) == after && read(memory, *first) == before, "two snapshots of one memory");
}

std::size_t free_memory() {
  std::size_t free = 0, total = 0;
  CHECK_CUDA(cudaMemGetInfo(&free, &total));
  return free;
}

int run() {
  const auto memory = std::make_shared<SnapshotMemory>(0);
  holds_what_was_there(*memory, MemorySnapshot::Place::device, "in the device's memory");
  two_at_once(*memory);
  const std::size_t with_blocks = free_memory();
  check(memory->release_unused() && free_memory() > with_blocks, "memory of snapshots comes back");
  check(!memory->release_unused(), "and only once");
  {
    const DeviceBytes rest(free_memory() - (std::size_t{1} << 30));
    holds_what_was_there(*memory, MemorySnapshot::Place::host, "in the host's memory");
  }
  if (failures == 0) std::printf("snapshots: all as promised\n");
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace tinyllama

int main() {
  try {
    return tinyllama::run();
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
}
