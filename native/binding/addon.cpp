// The addon's table of contents: each binding file registers its own classes and functions.
#include <napi.h>

#include "native/binding/checkpoint_binding.h"
#include "native/binding/dataset_binding.h"
#include "native/binding/machine_binding.h"
#include "native/binding/model_binding.h"
#include "native/binding/planning_binding.h"
#include "native/binding/promise_thread.h"
#include "native/binding/quantize_binding.h"
#include "native/binding/tokenizer_binding.h"

namespace {

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  tinyllama::end_threads_with_process(env);
  tinyllama::register_machine(env, exports);
  tinyllama::register_tokenizer(env, exports);
  tinyllama::register_quantize(env, exports);
  tinyllama::register_model(env, exports);
  tinyllama::register_planning(env, exports);
  tinyllama::register_checkpoint(env, exports);
  tinyllama::register_dataset(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(tinyllama_native, initialize)
