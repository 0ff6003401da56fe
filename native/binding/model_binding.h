// The class Model of the addon: src/engine/Native.ts's NativeModel.
#pragma once
#include <napi.h>

namespace tinyllama {

void register_model(Napi::Env env, Napi::Object exports);

}  // namespace tinyllama
