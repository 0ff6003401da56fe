// Snapshots of a GPU's memory, and the pinned host memory that they leave it through. What was allocated once is kept for the next snapshot: both kinds of
// memory take long to get, and to give back, which waits for the GPU.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "native/device/device.h"
#include "native/device/memory_snapshot.h"

namespace tinyllama {

class SnapshotMemory : public std::enable_shared_from_this<SnapshotMemory> {
 public:
  explicit SnapshotMemory(int ordinal);
  ~SnapshotMemory();
  SnapshotMemory(const SnapshotMemory&) = delete;
  SnapshotMemory& operator=(const SnapshotMemory&) = delete;

  // Of what the ranges hold behind all that was issued on `compute` so far. In the device's memory the copy is issued on `compute` too, and nobody
  // waits for it: 13.2 GB take 6 ms of an H200's stream. Into the host's the call waits for the copy.
  std::unique_ptr<MemorySnapshot> take(cudaStream_t compute, const std::vector<MemoryRange>& ranges);

  // Pinned. It returns to here when it is let go.
  std::unique_ptr<Buffer> staging(std::size_t bytes);

  // Gives the memory of the device that no snapshot holds back. Returns whether there was any.
  bool release_unused();

 private:
  friend class CudaSnapshot;
  friend class StagingBuffer;
  struct Block {
    void* data;
    std::size_t bytes;
  };

  void* take_device_block(std::size_t bytes);
  std::unique_ptr<MemorySnapshot> copy_to_host(const std::vector<MemoryRange>& ranges);
  // Copies from the device, behind the event, and waits. Any thread.
  void copy_out(void* host, const void* device, std::size_t bytes);

  int ordinal_;
  cudaStream_t stream_ = nullptr;  // copies to the host, beside the compute
  std::mutex mutex_;               // of the lists, and of the stream
  std::vector<Block> free_device_, free_staging_;
};

}  // namespace tinyllama
