// Working memory that grows to the largest request and stays. Contents do not survive the next request.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "native/core/error.h"
#include "native/device/cpu/kernels.h"
#include "native/device/cpu/thread_pool.h"

namespace tinyllama {

// 64-byte aligned floats.
class ScratchArea {
 public:
  float* request(std::int64_t count) {
    if (count > count_) {
      memory_.reset();
      count_ = 0;
      const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(float) + 63) / 64 * 64;
      memory_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
      require(memory_ != nullptr, "out of memory: cannot allocate " + std::to_string(bytes) + " bytes of working memory");
      count_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> memory_;
  std::int64_t count_ = 0;
};

// What the operations share: the threads, the inner loops, and working memory. `thread` areas belong to one thread each.
struct CpuContext {
  CpuContext(int threads, const Kernels& table) : pool(threads), kernels(table), thread(static_cast<std::size_t>(pool.size())) {}

  ThreadPool pool;
  const Kernels& kernels;
  ScratchArea panels, row_panels;  // packed right operands
  ScratchArea tiles, shares;       // what an operation keeps between its loops
  ScratchArea rows, statistics;    // of the linear loss
  std::vector<ScratchArea> thread;
};

}  // namespace tinyllama
