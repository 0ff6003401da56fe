// Snapshots of the CPU's memory: a copy, made by all threads.
#pragma once
#include <memory>
#include <vector>

#include "native/device/cpu/thread_pool.h"
#include "native/device/memory_snapshot.h"

namespace tinyllama {

std::unique_ptr<MemorySnapshot> take_snapshot(ThreadPool& pool, const std::vector<MemoryRange>& ranges);

}  // namespace tinyllama
