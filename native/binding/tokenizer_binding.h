#pragma once
#include <napi.h>

namespace tinyllama {

// Registers the class Tokenizer of src/engine/Native.ts.
void register_tokenizer(Napi::Env env, Napi::Object exports);

}  // namespace tinyllama
