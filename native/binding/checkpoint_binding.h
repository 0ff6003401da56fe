// The state of a training run between a model and its files.
#pragma once
#include <napi.h>

#include <vector>

#include "native/checkpoint/state_reader.h"
#include "native/model/config.h"
#include "native/training/saved_state.h"

namespace tinyllama {

// StateSnapshot of src/engine/Native.ts.
Napi::Object snapshot_object(Napi::Env env, ParameterLayout layout, SavedState saved);

struct StoredState {
  std::vector<StoredFile> files;
  std::vector<StoredRange> ranges;
};
// From the arguments of Model.restore: files, ranges.
StoredState read_stored_state(const Napi::Value& files, const Napi::Value& ranges);
int read_thread_count(const Napi::Value& value);

void register_checkpoint(Napi::Env env, Napi::Object exports);

}  // namespace tinyllama
