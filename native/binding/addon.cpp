// The addon's table of contents: each binding file registers its own classes and functions.
#include <napi.h>

#include "native/device/cpu/cpu_device.h"

namespace {

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  exports.Set("instructionSet", Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
    return Napi::String::New(info.Env(), tinyllama::cpu_instruction_set());
  }));
  return exports;
}

}  // namespace

NODE_API_MODULE(tinyllama_native, initialize)
