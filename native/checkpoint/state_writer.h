// Writes a snapshot into files behind the training step: threads of its own fetch the files' pieces from the snapshot, hash them and write them where
// they belong, each byte once. The snapshot is let go when its last byte is fetched; then the files are made durable.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "native/checkpoint/sha256.h"
#include "native/checkpoint/shard_file.h"
#include "native/device/device.h"
#include "native/device/memory_snapshot.h"

namespace tinyllama {

struct WrittenFile {
  std::string path;
  std::int64_t bytes;
  std::vector<Digest> pieces;
};

class StateWriter {
 public:
  using Done = std::function<void()>;

  // Begins at once. The device lends the memory that pieces pass through. `done` is called on a thread of the writer's when all is over, well or not; it
  // must not wait for the writer.
  StateWriter(std::shared_ptr<Device> device, std::shared_ptr<MemorySnapshot> snapshot, std::vector<ShardFile> files, int threads, Done done = {});
  // Gives up what is not written yet, and waits for the threads.
  ~StateWriter();
  StateWriter(const StateWriter&) = delete;
  StateWriter& operator=(const StateWriter&) = delete;

  // Ends soon, with an error. Any thread may call it.
  void cancel() { cancelled_ = true; }
  // What was written. Waits; throws what went wrong: the file system's refusal, with its code and the path, or that it was cancelled.
  const std::vector<WrittenFile>& wait();

 private:
  void run();
  void write_files();

  std::shared_ptr<Device> device_;
  std::shared_ptr<MemorySnapshot> snapshot_;
  std::vector<ShardFile> files_;
  int threads_;
  Done done_;
  std::atomic<bool> cancelled_ = false;
  std::vector<WrittenFile> written_;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace tinyllama
