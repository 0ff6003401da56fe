#include "native/binding/tokenizer_binding.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>
#include <variant>

#include "native/binding/arguments.h"
#include "native/binding/promise_worker.h"
#include "native/tokenizer/batch.h"
#include "native/tokenizer/decoder.h"
#include "native/tokenizer/sentencepiece_model.h"
#include "native/tokenizer/utf8.h"

namespace tinyllama {

namespace {

std::span<const std::uint8_t> byte_argument(const Napi::CallbackInfo& info) {
  const bool is_bytes = info.Length() > 0 && info[0].IsTypedArray() && info[0].As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array;
  if (!is_bytes) throw Napi::TypeError::New(info.Env(), "the document must be a Uint8Array");
  const auto array = info[0].As<Napi::Uint8Array>();
  return {array.Data(), array.ElementLength()};
}

EncodeOptions options_argument(const Napi::CallbackInfo& info, std::size_t index) {
  if (info.Length() <= index || !info[index].IsObject()) throw Napi::TypeError::New(info.Env(), "encoding needs options {addBos, addEos, dummyPrefix}");
  const auto object = info[index].As<Napi::Object>();
  const auto flag = [&](const char* name) -> bool { return object.Get(name).ToBoolean(); };
  return {.add_bos = flag("addBos"), .add_eos = flag("addEos"), .dummy_prefix = flag("dummyPrefix")};
}

Napi::TypedArray typed_array(Napi::ArrayBuffer memory, std::size_t count, std::uint16_t) { return Napi::Uint16Array::New(memory.Env(), count, memory, 0); }
Napi::TypedArray typed_array(Napi::ArrayBuffer memory, std::size_t count, std::uint32_t) { return Napi::Uint32Array::New(memory.Env(), count, memory, 0); }

// {ids, offsets}, the ids without a copy.
template <typename Id>
Napi::Value batch_object(Napi::Env env, EncodedBatch<Id>& batch) {
  const std::size_t count = batch.ids.size();
  Napi::ArrayBuffer memory = count == 0 ? Napi::ArrayBuffer::New(env, 0)
                                        : Napi::ArrayBuffer::New(env, batch.ids.release(), count * sizeof(Id), [](Napi::Env, void* ids) { std::free(ids); });
  auto offsets = Napi::Uint32Array::New(env, batch.offsets.size());
  std::copy(batch.offsets.begin(), batch.offsets.end(), offsets.Data());
  auto result = Napi::Object::New(env);
  result.Set("ids", typed_array(memory, count, Id{}));
  result.Set("offsets", offsets);
  return result;
}

class TokenizerWrap : public Napi::ObjectWrap<TokenizerWrap> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Tokenizer",
                       {InstanceAccessor<&TokenizerWrap::vocabulary_size>("vocabularySize"), InstanceMethod<&TokenizerWrap::encode>("encode"),
                        InstanceMethod<&TokenizerWrap::encode_batch>("encodeBatch"),
                        InstanceMethod<&TokenizerWrap::encode_ranges>("encodeRanges"),
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
    vocabulary_ = std::make_shared<const Vocabulary>(std::move(pieces), std::vector<float>(scores.Data(), scores.Data() + scores.ElementLength()),
                                                     std::vector<std::uint8_t>(types.Data(), types.Data() + types.ElementLength()));
    if (vocabulary_->size() <= std::numeric_limits<std::uint16_t>::max() + 1) {
      encoder_ = std::make_shared<BatchEncoder<std::uint16_t>>(vocabulary_);
    } else {
      encoder_ = std::make_shared<BatchEncoder<std::uint32_t>>(vocabulary_);
    }
  }

 private:
  // get vocabularySize(): number
  Napi::Value vocabulary_size(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), vocabulary_->size()); }

  // encode(document: Uint8Array, options: EncodeOptions): Int32Array
  Napi::Value encode(const Napi::CallbackInfo& info) {
    const auto document = byte_argument(info);
    const EncodeOptions options = options_argument(info, 1);
    const auto ids = std::visit([&](const auto& encoder) { return encoder->encode(document, options); }, encoder_);
    auto result = Napi::Int32Array::New(info.Env(), ids.size());
    std::copy(ids.begin(), ids.end(), result.Data());
    return result;
  }

  // encodeBatch(text: Uint8Array, offsets: Uint32Array, options: EncodeOptions, threads: number): Promise<EncodedBatch>
  Napi::Value encode_batch(const Napi::CallbackInfo& info) {
    const auto offsets = uint32_argument(info[1], "offsets");
    return encode_documents(info, std::span<const std::uint32_t>{offsets.Data(), offsets.ElementLength()});
  }

  // encodeRanges(text: Uint8Array, ranges: Uint32Array, options: EncodeOptions, threads: number): Promise<EncodedBatch>
  Napi::Value encode_ranges(const Napi::CallbackInfo& info) {
    const auto ranges = uint32_argument(info[1], "ranges");
    require(ranges.ElementLength() % 2 == 0, "ranges holds a begin and an end of each document");
    return encode_documents(info, std::span<const ByteRange>{reinterpret_cast<const ByteRange*>(ranges.Data()), ranges.ElementLength() / 2});
  }

  template <typename Documents>
  Napi::Value encode_documents(const Napi::CallbackInfo& info, Documents documents) {
    const auto text = byte_argument(info);
    const EncodeOptions options = options_argument(info, 2);
    const std::int64_t threads = integer_argument(info[3], "threads");
    require(threads >= 1 && threads <= 1024, "threads must be 1 to 1024");
    // Both arrays stay where they are, and alive, until the promise settles.
    auto held = std::make_shared<Napi::ObjectReference>(Napi::Persistent(Napi::Object::New(info.Env())));
    held->Set("text", info[0]);
    held->Set("documents", info[1]);
    return std::visit(
        [&]<typename Id>(const std::shared_ptr<BatchEncoder<Id>>& encoder) -> Napi::Value {
          return run_async<EncodedBatch<Id>>(
              info.Env(), "encodeBatch", [=] { return encoder->encode(text, documents, options, static_cast<int>(threads)); },
              [held](Napi::Env env, EncodedBatch<Id>& batch) { return batch_object(env, batch); });
        },
        encoder_);
  }

  // decode(ids: Int32Array): Uint8Array
  Napi::Value decode(const Napi::CallbackInfo& info) {
    const bool is_ids = info.Length() > 0 && info[0].IsTypedArray() && info[0].As<Napi::TypedArray>().TypedArrayType() == napi_int32_array;
    if (!is_ids) throw Napi::TypeError::New(info.Env(), "the ids must be an Int32Array");
    const auto ids = info[0].As<Napi::Int32Array>();
    const auto text = tinyllama::decode(*vocabulary_, {ids.Data(), ids.ElementLength()});
    auto result = Napi::Uint8Array::New(info.Env(), text.size());
    std::copy(text.begin(), text.end(), result.Data());
    return result;
  }

  // firstInvalidUtf8(document: Uint8Array): number
  Napi::Value first_invalid_utf8(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(tinyllama::first_invalid_utf8(byte_argument(info))));
  }

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::variant<std::shared_ptr<BatchEncoder<std::uint16_t>>, std::shared_ptr<BatchEncoder<std::uint32_t>>> encoder_;
};

// readSentencePieceModel(file: Uint8Array): {pieces, scores, types, addDummyPrefix}
Napi::Value read_model(const Napi::CallbackInfo& info) {
  const SentencePieceModel model = read_sentencepiece_model(byte_argument(info));
  const Napi::Env env = info.Env();
  auto pieces = Napi::Array::New(env, model.pieces.size());
  for (std::uint32_t id = 0; id < pieces.Length(); ++id) {
    Napi::HandleScope scope(env);
    pieces.Set(id, Napi::String::New(env, model.pieces[id]));
  }
  auto scores = Napi::Float32Array::New(env, model.scores.size());
  std::copy(model.scores.begin(), model.scores.end(), scores.Data());
  auto types = Napi::Uint8Array::New(env, model.types.size());
  std::copy(model.types.begin(), model.types.end(), types.Data());
  auto result = Napi::Object::New(env);
  result.Set("pieces", pieces);
  result.Set("scores", scores);
  result.Set("types", types);
  result.Set("addDummyPrefix", Napi::Boolean::New(env, model.add_dummy_prefix));
  return result;
}

}  // namespace

void register_tokenizer(Napi::Env env, Napi::Object exports) {
  exports.Set("Tokenizer", TokenizerWrap::define(env));
  exports.Set("readSentencePieceModel", Napi::Function::New<&read_model>(env, "readSentencePieceModel"));
}

}  // namespace tinyllama
