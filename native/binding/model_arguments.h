// What the calls of a Model are given, read from JavaScript; errors name the field.
#pragma once
#include <napi.h>

#include <cstdint>
#include <vector>

#include "native/distributed/open_communicator.h"
#include "native/model/llama.h"
#include "native/optimizer/adamw.h"
#include "native/training/training_engine.h"

namespace tinyllama {

// A batch's ids, copied: the caller may change its arrays while the call is under way.
struct OwnedBatch {
  std::vector<std::int32_t> tokens, targets, first_keys;
  std::int64_t batch = 0, length = 0;
  TokenBatch view() const { return {tokens, targets, batch, length, first_keys}; }
};

LlamaConfig read_config(const Napi::Value& value);
EngineOptions read_options(const Napi::Value& value);
// Of options.world; a world of 1 where it is not given.
CommunicatorOptions read_world(const Napi::Value& options);
// All micro-batches of a step, where it is not given: one round.
MicroBatchRound read_round(const Napi::Value& value);
AdamWOptions read_step(const Napi::Value& value);
OwnedBatch read_batch(const Napi::Value& value, bool with_targets);

}  // namespace tinyllama
