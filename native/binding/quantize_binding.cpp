#include "native/binding/quantize_binding.h"

#include <algorithm>

#include "native/quantize/quantize.h"

namespace tinyllama {

namespace {

// Reads the caller's array off the JavaScript thread: it is held by a reference, and must not be changed until the promise settles.
class QuantizeWorker : public Napi::AsyncWorker {
 public:
  QuantizeWorker(Napi::Env env, BlockType type, const Napi::Float32Array& values, std::size_t columns)
      : Napi::AsyncWorker(env), promise_(Napi::Promise::Deferred::New(env)), type_(type), columns_(columns),
        values_(values.Data(), values.ElementLength()), held_(Napi::Persistent(values.As<Napi::Object>())) {}

  Napi::Promise promise() const { return promise_.Promise(); }

  void Execute() override { blocks_ = quantize(type_, values_, columns_); }  // AsyncWorker hands std::exception on to OnError
  void OnOK() override {
    auto result = Napi::Uint8Array::New(Env(), blocks_.size());
    std::copy(blocks_.begin(), blocks_.end(), result.Data());
    promise_.Resolve(result);
  }
  void OnError(const Napi::Error& error) override { promise_.Reject(error.Value()); }

 private:
  Napi::Promise::Deferred promise_;
  BlockType type_;
  std::size_t columns_;
  std::span<const float> values_;
  Napi::ObjectReference held_;
  std::vector<std::uint8_t> blocks_;
};

// quantize(type: "F16" | "Q8_0" | "Q4_0", values: Float32Array, columns: number): Promise<Uint8Array>
Napi::Value quantize_values(const Napi::CallbackInfo& info) {
  const bool fits = info.Length() == 3 && info[0].IsString() && info[1].IsTypedArray() &&
                    info[1].As<Napi::TypedArray>().TypedArrayType() == napi_float32_array && info[2].IsNumber();
  if (!fits) throw Napi::TypeError::New(info.Env(), "quantize needs a type, a Float32Array and a number of columns");
  const std::int64_t columns = info[2].As<Napi::Number>().Int64Value();
  if (columns <= 0) throw Napi::TypeError::New(info.Env(), "the number of columns must be positive");
  const BlockType type = block_type(info[0].As<Napi::String>().Utf8Value());
  auto* worker = new QuantizeWorker(info.Env(), type, info[1].As<Napi::Float32Array>(), static_cast<std::size_t>(columns));
  const Napi::Promise promise = worker->promise();
  worker->Queue();  // deletes itself when done
  return promise;
}

}  // namespace

void register_quantize(Napi::Env env, Napi::Object exports) { exports.Set("quantize", Napi::Function::New(env, quantize_values)); }

}  // namespace tinyllama
