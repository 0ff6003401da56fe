// The addon's table of contents: each binding file registers its own classes and functions.
#include <napi.h>

#include "native/binding/model_binding.h"
#include "native/binding/quantize_binding.h"
#include "native/binding/tokenizer_binding.h"
#include "native/device/cpu/cpu_device.h"

namespace {

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  exports.Set("instructionSet", Napi::Function::New(env, [](const Napi::CallbackInfo& info) {
    return Napi::String::New(info.Env(), tinyllama::cpu_instruction_set());
  }));
  tinyllama::register_tokenizer(env, exports);
  tinyllama::register_quantize(env, exports);
  tinyllama::register_model(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(tinyllama_native, initialize)
