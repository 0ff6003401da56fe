#pragma once
#include <napi.h>

namespace tinyllama {

// Registers quantize of src/engine/Native.ts.
void register_quantize(Napi::Env env, Napi::Object exports);

}  // namespace tinyllama
