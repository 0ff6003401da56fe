#include "native/binding/dataset_binding.h"

#include <algorithm>
#include <cstdlib>
#include <span>
#include <utility>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "native/binding/arguments.h"
#include "native/binding/json_rows_binding.h"
#include "native/binding/loader_binding.h"
#include "native/dataset/text_facts.h"

namespace tinyllama {

namespace {

// The upper 53 bits, in [0, 1).
double fraction_of(std::uint64_t hash) { return static_cast<double>(hash >> 11) * 0x1p-53; }

// textHash(bytes: Uint8Array, seed: number): number, XXH64's upper 53 bits as a fraction in [0, 1)
Napi::Value text_hash(const Napi::CallbackInfo& info) {
  const auto bytes = uint8_argument(info[0], "bytes");
  const auto seed = static_cast<std::uint64_t>(integer_argument(info[1], "seed"));
  return Napi::Number::New(info.Env(), fraction_of(xxh64({bytes.Data(), bytes.ElementLength()}, seed)));
}

// The elements of a Uint16Array or a Uint32Array, given to `body` as a span.
template <typename Body>
auto with_ids(const Napi::Value& value, Body body) {
  const auto type = value.IsTypedArray() ? value.As<Napi::TypedArray>().TypedArrayType() : napi_int8_array;
  require(type == napi_uint16_array || type == napi_uint32_array, "tokens must be a Uint16Array or a Uint32Array");
  if (type == napi_uint16_array) {
    const auto ids = value.As<Napi::Uint16Array>();
    return body(std::span<const std::uint16_t>{ids.Data(), ids.ElementLength()});
  }
  const auto ids = value.As<Napi::Uint32Array>();
  return body(std::span<const std::uint32_t>{ids.Data(), ids.ElementLength()});
}

// documentHashes(tokens: Uint16Array | Uint32Array, offsets: Int32Array): Float64Array, of each document [offsets[i], offsets[i + 1]) as textHash of its bytes
Napi::Value document_hashes(const Napi::CallbackInfo& info) {
  const auto offsets = int32_argument(info[1], "offsets");
  const std::size_t documents = offsets.ElementLength() == 0 ? 0 : offsets.ElementLength() - 1;
  auto hashes = Napi::Float64Array::New(info.Env(), documents);
  with_ids(info[0], [&](const auto tokens) {
    for (std::size_t i = 0; i < documents; ++i) {
      const auto [from, to] = std::pair{offsets[i], offsets[i + 1]};
      require(from >= 0 && from <= to && static_cast<std::size_t>(to) <= tokens.size(), "the offsets ascend, and end inside the tokens");
      const auto document = std::as_bytes(tokens.subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(to - from)));
      hashes[i] = fraction_of(xxh64({reinterpret_cast<const std::uint8_t*>(document.data()), document.size()}, 0));
    }
  });
  return hashes;
}

// largestId(tokens: Uint16Array | Uint32Array): number, -1 for none
Napi::Value largest_id(const Napi::CallbackInfo& info) {
  const double largest = with_ids(info[0], [](const auto tokens) {
    return tokens.empty() ? -1.0 : static_cast<double>(std::ranges::max(tokens));
  });
  return Napi::Number::New(info.Env(), largest);
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
  exports.Set("documentHashes", Napi::Function::New(env, document_hashes, "documentHashes"));
  exports.Set("largestId", Napi::Function::New(env, largest_id, "largestId"));
  exports.Set("countCharacters", Napi::Function::New(env, characters, "countCharacters"));
}

}  // namespace tinyllama
