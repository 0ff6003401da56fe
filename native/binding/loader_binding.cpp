#include "native/binding/loader_binding.h"

#include <memory>

#include "native/binding/arguments.h"
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
  explicit LoaderWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<LoaderWrap>(info) {
    const Napi::Object options = object_argument(info[1], "layout");
    const BlockLayout layout{.block_length = count_argument(options.Get("blockLength"), "blockLength"),
                             .wide = boolean_argument(options.Get("wide"), "wide"),
                             .boundaries = boolean_argument(options.Get("boundaries"), "boundaries"),
                             .lengths = boolean_argument(options.Get("lengths"), "lengths")};
    loader_ = std::make_unique<Loader>(string_argument(info[0], "path"), layout, count_argument(options.Get("vocabularySize"), "vocabularySize"),
                                       count_argument(options.Get("seed"), "seed"));
  }

 private:
  Loader& loader() const {
    require(loader_ != nullptr, "the loader was disposed of");
    return *loader_;
  }

  // get blocks(): number
  Napi::Value blocks(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), static_cast<double>(loader().blocks())); }

  // sampleAt(index: number): number
  Napi::Value sample_at(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(loader().sample_at(count_argument(info[0], "index"))));
  }

  // samples(first: number, stride: number, tokens: Int32Array, targets: Int32Array, ahead: number, firstKeys?: Int32Array): void
  void samples(const Napi::CallbackInfo& info) {
    loader().samples(count_argument(info[0], "first"), count_argument(info[1], "stride"),
                     {rows_argument(info[2], "tokens"), rows_argument(info[3], "targets"), first_keys_argument(info[5])},
                     count_argument(info[4], "ahead"));
  }

  // inOrder(first: number, tokens: Int32Array, targets: Int32Array, firstKeys?: Int32Array): void
  void in_order(const Napi::CallbackInfo& info) {
    loader().in_order(count_argument(info[0], "first"),
                      {rows_argument(info[1], "tokens"), rows_argument(info[2], "targets"), first_keys_argument(info[3])});
  }

  // dispose(): void
  void dispose(const Napi::CallbackInfo&) { loader_.reset(); }

  std::unique_ptr<Loader> loader_;
};

}  // namespace

Napi::Function define_loader(Napi::Env env) { return LoaderWrap::define(env); }

}  // namespace tinyllama
