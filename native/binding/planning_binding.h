// What training would need and take, without a Model: gpus, planTrainingMemory, timeKernels.
#pragma once
#include <napi.h>

namespace tinyllama {

void register_planning(Napi::Env env, Napi::Object exports);

}  // namespace tinyllama
