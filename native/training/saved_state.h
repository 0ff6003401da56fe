// The state of a training engine and its checkpoints: what a rank writes, and what it reads back.
#pragma once
#include <memory>
#include <vector>

#include "native/checkpoint/state.h"
#include "native/checkpoint/state_reader.h"
#include "native/device/memory_snapshot.h"
#include "native/training/training_engine.h"

namespace tinyllama {

// What a rank holds of weights and moments at one moment. Where others hold the same, each has a part of it.
struct SavedState {
  std::shared_ptr<Device> device;
  std::vector<HeldRange> held;  // in the order of the snapshot
  std::shared_ptr<MemorySnapshot> memory;
};

SavedState take_snapshot(TrainingEngine& engine);

// Fills all that this rank holds. Errors as read_state's; the state is then half filled.
void restore_state(TrainingEngine& engine, const std::vector<StoredFile>& files, const std::vector<StoredRange>& ranges, int threads);

}  // namespace tinyllama
