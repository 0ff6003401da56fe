#include "native/device/cuda/snapshot_memory.h"

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

#include "native/device/cpu/thread_pool.h"
#include "native/device/cuda/cuda_check.h"
#include "native/device/host_memory.h"

namespace tinyllama {
namespace {

// Left for what the device may still be asked for: plans of products, graphs of new shapes, the communicator's buffers.
constexpr std::size_t device_reserve = std::size_t{2} << 30;
// Of a copy to the host: long enough for the bus's full speed, short enough for two to overlap.
constexpr std::size_t chunk_bytes = std::size_t{32} << 20;
constexpr std::size_t grain = std::size_t{1} << 20;

}  // namespace

// Pinned memory of the list.
class StagingBuffer final : public Buffer {
 public:
  StagingBuffer(std::shared_ptr<SnapshotMemory> owner, SnapshotMemory::Block block) : owner_(std::move(owner)), block_(block) {}
  ~StagingBuffer() override {
    const std::lock_guard lock(owner_->mutex_);
    owner_->free_staging_.push_back(block_);
  }
  void* data() const override { return block_.data; }
  std::size_t bytes() const override { return block_.bytes; }

 private:
  std::shared_ptr<SnapshotMemory> owner_;
  SnapshotMemory::Block block_;
};

// Ranges of the device's memory: a copy's, which is then this object's, or those that were asked for.
class CudaSnapshot final : public MemorySnapshot {
 public:
  CudaSnapshot(std::shared_ptr<SnapshotMemory> owner, std::vector<MemoryRange> ranges, void* copy)
      : owner_(std::move(owner)), ranges_(std::move(ranges)), bytes_(total_bytes(ranges_)), copy_(copy) {}
  ~CudaSnapshot() override {
    if (copy_ == nullptr) return;
    const std::lock_guard lock(owner_->mutex_);
    owner_->free_device_.push_back({copy_, bytes_});
  }
  Place place() const override { return copy_ == nullptr ? Place::live : Place::device; }
  std::size_t bytes() const override { return bytes_; }
  const std::byte* fetch(std::size_t offset, std::size_t count, std::byte* staging) override {
    for_parts(ranges_, offset, count, [&](const MemoryRange& range, std::size_t from, std::size_t to, std::size_t bytes) {
      if (range.data == nullptr) std::memset(staging + to, 0, bytes);
      else owner_->copy_out(staging + to, static_cast<const std::byte*>(range.data) + from, bytes);
    });
    return staging;
  }

 private:
  std::shared_ptr<SnapshotMemory> owner_;
  std::vector<MemoryRange> ranges_;
  std::size_t bytes_;
  void* copy_;
};

SnapshotMemory::SnapshotMemory(int ordinal) : ordinal_(ordinal) {
  CHECK_CUDA(cudaSetDevice(ordinal_));
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

SnapshotMemory::~SnapshotMemory() {
  cudaSetDevice(ordinal_);
  for (const Block& block : free_device_) cudaFree(block.data);
  for (const Block& block : free_staging_) cudaFreeHost(block.data);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

std::unique_ptr<MemorySnapshot> SnapshotMemory::take(cudaStream_t compute, const std::vector<MemoryRange>& ranges) {
  CHECK_CUDA(cudaSetDevice(ordinal_));
  const std::size_t bytes = total_bytes(ranges);
  std::unique_ptr<MemorySnapshot> snapshot;
  if (void* copy = take_device_block(bytes); copy != nullptr) {
    snapshot = std::make_unique<CudaSnapshot>(shared_from_this(), std::vector<MemoryRange>{{copy, bytes}}, copy);
    auto* to = static_cast<std::byte*>(copy);
    for (const MemoryRange& range : ranges) {
      if (range.data == nullptr) CHECK_CUDA(cudaMemsetAsync(to, 0, range.bytes, compute));
      else CHECK_CUDA(cudaMemcpyAsync(to, range.data, range.bytes, cudaMemcpyDeviceToDevice, compute));
      to += range.bytes;
    }
  }
  // Edge: compute → the stream of copies to the host.
  cudaEvent_t ready = nullptr;
  CHECK_CUDA(cudaEventCreateWithFlags(&ready, cudaEventDisableTiming));
  const cudaError_t recorded = cudaEventRecord(ready, compute), waits = cudaStreamWaitEvent(stream_, ready);
  cudaEventDestroy(ready);  // goes when it has happened
  CHECK_CUDA(recorded);
  CHECK_CUDA(waits);
  if (snapshot == nullptr) snapshot = copy_to_host(ranges);
  if (snapshot == nullptr) snapshot = std::make_unique<CudaSnapshot>(shared_from_this(), ranges, nullptr);
  return snapshot;
}

void* SnapshotMemory::take_device_block(std::size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    const auto fits = std::find_if(free_device_.begin(), free_device_.end(), [&](const Block& block) { return block.bytes == bytes; });
    if (fits != free_device_.end()) {
      void* data = fits->data;
      free_device_.erase(fits);
      return data;
    }
  }
  std::size_t free = 0, total = 0;
  CHECK_CUDA(cudaMemGetInfo(&free, &total));
  if (free < device_reserve || free - device_reserve < bytes) return nullptr;
  void* data = nullptr;
  if (cudaMalloc(&data, std::max<std::size_t>(bytes, 1)) == cudaSuccess) return data;
  cudaGetLastError();  // not sticky: the host may have room
  return nullptr;
}

std::unique_ptr<MemorySnapshot> SnapshotMemory::copy_to_host(const std::vector<MemoryRange>& ranges) {
  const std::size_t bytes = total_bytes(ranges);
  HostMemory memory = allocate_if_room(bytes);
  if (memory == nullptr) return nullptr;
  // While one chunk comes over the bus, the one before is copied from pinned memory to where it stays, by several threads: these pages are touched for
  // the first time, which is slower than the bus for one.
  const std::unique_ptr<Buffer> pinned[2] = {staging(chunk_bytes), staging(chunk_bytes)};
  ThreadPool pool(static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 8u)));
  const std::lock_guard lock(mutex_);
  const auto begin = [&](std::size_t offset, std::byte* to) {
    for_parts(ranges, offset, std::min(chunk_bytes, bytes - offset), [&](const MemoryRange& range, std::size_t from, std::size_t at, std::size_t count) {
      if (range.data == nullptr) std::memset(to + at, 0, count);
      else CHECK_CUDA(cudaMemcpyAsync(to + at, static_cast<const std::byte*>(range.data) + from, count, cudaMemcpyDeviceToHost, stream_));
    });
  };
  if (bytes > 0) begin(0, static_cast<std::byte*>(pinned[0]->data()));
  for (std::size_t offset = 0, turn = 0; offset < bytes; offset += chunk_bytes, turn ^= 1) {
    CHECK_CUDA(cudaStreamSynchronize(stream_));
    if (offset + chunk_bytes < bytes) begin(offset + chunk_bytes, static_cast<std::byte*>(pinned[turn ^ 1]->data()));
    const auto* from = static_cast<const std::byte*>(pinned[turn]->data());
    const std::size_t count = std::min(chunk_bytes, bytes - offset);
    pool.parallel_for(static_cast<std::int64_t>((count + grain - 1) / grain), [&](std::int64_t item, int) {
      const std::size_t at = static_cast<std::size_t>(item) * grain;
      std::memcpy(memory.get() + offset + at, from + at, std::min(grain, count - at));
    });
  }
  return std::make_unique<HostSnapshot>(std::move(memory), bytes);
}

void SnapshotMemory::copy_out(void* host, const void* device, std::size_t bytes) {
  CHECK_CUDA(cudaSetDevice(ordinal_));
  const std::lock_guard lock(mutex_);
  CHECK_CUDA(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_));
  CHECK_CUDA(cudaStreamSynchronize(stream_));
}

std::unique_ptr<Buffer> SnapshotMemory::staging(std::size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    const auto fits = std::find_if(free_staging_.begin(), free_staging_.end(), [&](const Block& block) { return block.bytes >= bytes; });
    if (fits != free_staging_.end()) {
      const Block block = *fits;
      free_staging_.erase(fits);
      return std::make_unique<StagingBuffer>(shared_from_this(), block);
    }
  }
  CHECK_CUDA(cudaSetDevice(ordinal_));
  void* data = nullptr;
  CHECK_CUDA(cudaHostAlloc(&data, std::max<std::size_t>(bytes, 1), cudaHostAllocPortable));
  return std::make_unique<StagingBuffer>(shared_from_this(), Block{data, bytes});
}

bool SnapshotMemory::release_unused() {
  CHECK_CUDA(cudaSetDevice(ordinal_));
  const std::lock_guard lock(mutex_);
  const bool any = !free_device_.empty();
  for (const Block& block : std::exchange(free_device_, {})) CHECK_CUDA(cudaFree(block.data));
  return any;
}

}  // namespace tinyllama
