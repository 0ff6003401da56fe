#include "native/binding/dataset_binding.h"

#include <cstdlib>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "native/binding/arguments.h"
#include "native/binding/json_rows_binding.h"
#include "native/binding/loader_binding.h"
#include "native/dataset/text_facts.h"

namespace tinyllama {

namespace {

// textHash(bytes: Uint8Array, seed: number): number, XXH64's upper 53 bits as a fraction in [0, 1)
Napi::Value text_hash(const Napi::CallbackInfo& info) {
  const auto bytes = uint8_argument(info[0], "bytes");
  const auto seed = static_cast<std::uint64_t>(integer_argument(info[1], "seed"));
  const std::uint64_t hash = xxh64({bytes.Data(), bytes.ElementLength()}, seed);
  return Napi::Number::New(info.Env(), static_cast<double>(hash >> 11) * 0x1p-53);
}

// countCharacters(text: Uint8Array): number
Napi::Value characters(const Napi::CallbackInfo& info) {
  const auto text = uint8_argument(info[0], "text");
  return Napi::Number::New(info.Env(), static_cast<double>(count_characters({text.Data(), text.ElementLength()})));
}

// releaseFreeMemory(): void
Napi::Value release_free_memory(const Napi::CallbackInfo& info) {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
  return info.Env().Undefined();
}

}  // namespace

void register_dataset(Napi::Env env, Napi::Object exports) {
  exports.Set("JsonRows", define_json_rows(env));
  exports.Set("Loader", define_loader(env));
  exports.Set("textHash", Napi::Function::New(env, text_hash, "textHash"));
  exports.Set("releaseFreeMemory", Napi::Function::New(env, release_free_memory, "releaseFreeMemory"));
  exports.Set("countCharacters", Napi::Function::New(env, characters, "countCharacters"));
}

}  // namespace tinyllama
