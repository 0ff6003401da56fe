#include "native/binding/tokenizer_binding.h"

#include <algorithm>
#include <memory>

#include "native/tokenizer/encoder.h"
#include "native/tokenizer/utf8.h"

namespace tinyllama {

namespace {

std::span<const std::uint8_t> byte_argument(const Napi::CallbackInfo& info) {
  const bool is_bytes = info.Length() > 0 && info[0].IsTypedArray() && info[0].As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array;
  if (!is_bytes) throw Napi::TypeError::New(info.Env(), "the document must be a Uint8Array");
  const auto array = info[0].As<Napi::Uint8Array>();
  return {array.Data(), array.ElementLength()};
}

bool flag(const Napi::Object& options, const char* name) { return options.Get(name).ToBoolean(); }

class TokenizerWrap : public Napi::ObjectWrap<TokenizerWrap> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Tokenizer",
                       {InstanceAccessor<&TokenizerWrap::vocabulary_size>("vocabularySize"), InstanceMethod<&TokenizerWrap::encode>("encode"),
                        InstanceMethod<&TokenizerWrap::decode>("decode"), InstanceMethod<&TokenizerWrap::first_invalid_utf8>("firstInvalidUtf8")});
  }

  // new (vocabulary: Vocabulary)
  explicit TokenizerWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<TokenizerWrap>(info) {
    if (info.Length() < 1 || !info[0].IsObject()) throw Napi::TypeError::New(info.Env(), "a Tokenizer needs a vocabulary");
    const auto vocabulary = info[0].As<Napi::Object>();
    if (!vocabulary.Get("pieces").IsArray() || !vocabulary.Get("scores").IsTypedArray() || !vocabulary.Get("types").IsTypedArray()) {
      throw Napi::TypeError::New(info.Env(), "a vocabulary has pieces (strings), scores (Float32Array) and types (Uint8Array)");
    }
    const auto texts = vocabulary.Get("pieces").As<Napi::Array>();
    const auto scores = vocabulary.Get("scores").As<Napi::Float32Array>();
    const auto types = vocabulary.Get("types").As<Napi::Uint8Array>();
    std::vector<std::string> pieces;
    pieces.reserve(texts.Length());
    for (std::uint32_t i = 0; i < texts.Length(); ++i) {
      Napi::HandleScope scope(info.Env());
      pieces.push_back(texts.Get(i).ToString().Utf8Value());
    }
    encoder_ = std::make_unique<Encoder>(
        std::make_shared<const Vocabulary>(std::move(pieces), std::vector<float>(scores.Data(), scores.Data() + scores.ElementLength()),
                                           std::vector<std::uint8_t>(types.Data(), types.Data() + types.ElementLength())));
  }

 private:
  // get vocabularySize(): number
  Napi::Value vocabulary_size(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), encoder_->vocabulary().size()); }

  // encode(document: Uint8Array, options: EncodeOptions): Int32Array
  Napi::Value encode(const Napi::CallbackInfo& info) {
    const auto document = byte_argument(info);
    if (info.Length() < 2 || !info[1].IsObject()) throw Napi::TypeError::New(info.Env(), "encode needs options {addBos, addEos, dummyPrefix}");
    const auto object = info[1].As<Napi::Object>();
    const EncodeOptions options{
        .add_bos = flag(object, "addBos"), .add_eos = flag(object, "addEos"), .dummy_prefix = flag(object, "dummyPrefix")};
    const auto ids = encoder_->encode(document, options);
    auto result = Napi::Int32Array::New(info.Env(), ids.size());
    std::copy(ids.begin(), ids.end(), result.Data());
    return result;
  }

  // decode(ids: Int32Array): Uint8Array
  Napi::Value decode(const Napi::CallbackInfo& info) {
    const bool is_ids = info.Length() > 0 && info[0].IsTypedArray() && info[0].As<Napi::TypedArray>().TypedArrayType() == napi_int32_array;
    if (!is_ids) throw Napi::TypeError::New(info.Env(), "the ids must be an Int32Array");
    const auto ids = info[0].As<Napi::Int32Array>();
    const auto text = tinyllama::decode(encoder_->vocabulary(), {ids.Data(), ids.ElementLength()});
    auto result = Napi::Uint8Array::New(info.Env(), text.size());
    std::copy(text.begin(), text.end(), result.Data());
    return result;
  }

  // firstInvalidUtf8(document: Uint8Array): number
  Napi::Value first_invalid_utf8(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(tinyllama::first_invalid_utf8(byte_argument(info))));
  }

  std::unique_ptr<Encoder> encoder_;
};

}  // namespace

void register_tokenizer(Napi::Env env, Napi::Object exports) { exports.Set("Tokenizer", TokenizerWrap::define(env)); }

}  // namespace tinyllama
