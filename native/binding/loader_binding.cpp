#include "native/binding/loader_binding.h"

#include <memory>

#include "native/binding/arguments.h"
#include "native/binding/promise_thread.h"
#include "native/dataset/loader.h"

namespace tinyllama {

namespace {

// Indices and counts: integers from 0 to 2^53 - 1.
std::uint64_t count_argument(const Napi::Value& value, const std::string& name) {
  const std::int64_t number = integer_argument(value, name);
  require(number >= 0, name + " must not be negative");
  return static_cast<std::uint64_t>(number);
}

std::span<std::int32_t> rows_argument(const Napi::Value& value, const std::string& name) {
  auto array = int32_argument(value, name);
  return {array.Data(), array.ElementLength()};
}

std::span<std::int32_t> first_keys_argument(const Napi::Value& value) {
  if (value.IsUndefined()) return {};
  return rows_argument(value, "firstKeys");
}

class LoaderWrap : public Napi::ObjectWrap<LoaderWrap> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Loader",
                       {InstanceAccessor<&LoaderWrap::blocks>("blocks"), InstanceMethod<&LoaderWrap::sample_at>("sampleAt"),
                        InstanceMethod<&LoaderWrap::samples>("samples"), InstanceMethod<&LoaderWrap::in_order>("inOrder"),
                        InstanceMethod<&LoaderWrap::dispose>("dispose")});
  }

  // new (path: string, layout: {blockLength, wide, boundaries, lengths, vocabularySize, seed})
  explicit LoaderWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<LoaderWrap>(info), thread_(info.Env(), "loader", [this] { loader_.reset(); }) {
    const Napi::Object options = object_argument(info[1], "layout");
    const BlockLayout layout{.block_length = count_argument(options.Get("blockLength"), "blockLength"),
                             .wide = boolean_argument(options.Get("wide"), "wide"),
                             .boundaries = boolean_argument(options.Get("boundaries"), "boundaries"),
                             .lengths = boolean_argument(options.Get("lengths"), "lengths")};
    loader_ = std::make_unique<Loader>(string_argument(info[0], "path"), layout, count_argument(options.Get("vocabularySize"), "vocabularySize"),
                                       count_argument(options.Get("seed"), "seed"));
    blocks_ = loader_->blocks();
  }

 private:
  // get blocks(): number
  Napi::Value blocks(const Napi::CallbackInfo& info) {
    thread_.require_open();
    return Napi::Number::New(info.Env(), static_cast<double>(blocks_));
  }

  // sampleAt(index: number): number
  Napi::Value sample_at(const Napi::CallbackInfo& info) {
    const std::uint64_t index = count_argument(info[0], "index");
    return Napi::Number::New(info.Env(), static_cast<double>(thread_.wait([&] { return loader_->sample_at(index); })));
  }

  // samples(first: number, stride: number, tokens: Int32Array, targets: Int32Array, ahead: number, firstKeys?: Int32Array): Promise<void>
  Napi::Value samples(const Napi::CallbackInfo& info) {
    const std::uint64_t first = count_argument(info[0], "first"), stride = count_argument(info[1], "stride"), ahead = count_argument(info[4], "ahead");
    const Rows rows{rows_argument(info[2], "tokens"), rows_argument(info[3], "targets"), first_keys_argument(info[5])};
    return read(info, [=, this] { loader_->samples(first, stride, rows, ahead); });
  }

  // inOrder(first: number, tokens: Int32Array, targets: Int32Array, firstKeys?: Int32Array): Promise<void>
  Napi::Value in_order(const Napi::CallbackInfo& info) {
    const std::uint64_t first = count_argument(info[0], "first");
    const Rows rows{rows_argument(info[1], "tokens"), rows_argument(info[2], "targets"), first_keys_argument(info[3])};
    return read(info, [=, this] { loader_->in_order(first, rows); });
  }

  // The job holds this object and the arrays that it fills.
  template <typename Fill>
  Napi::Promise read(const Napi::CallbackInfo& info, Fill fill) {
    const Napi::Env env = info.Env();
    Napi::Array held = Napi::Array::New(env);
    held.Set(std::uint32_t{0}, info.This());
    for (std::uint32_t index = 0; index < info.Length(); ++index) held.Set(index + 1, info[index]);
    auto work = [fill] { return fill(), true; };
    auto answer = [](Napi::Env there, bool&) { return there.Undefined(); };
    return thread_.post(env, std::make_unique<CallJob<bool>>(env, held, work, answer));
  }

  // dispose(): void
  void dispose(const Napi::CallbackInfo& info) { thread_.dispose(info.Env()); }

  std::uint64_t blocks_ = 0;
  std::unique_ptr<Loader> loader_;
  PromiseThread thread_;
};

}  // namespace

Napi::Function define_loader(Napi::Env env) { return LoaderWrap::define(env); }

}  // namespace tinyllama
