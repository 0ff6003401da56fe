#include "native/binding/json_rows_binding.h"

#include <memory>

#include "native/binding/arguments.h"
#include "native/dataset/json_rows.h"
#include "native/dataset/text_facts.h"

namespace tinyllama {

namespace {

// Int32s of a row's record: status, begin, end, next, errorAt, invalidUtf8 (-1: none), characters of the first field; then of each field
// kind, offset, length, loneSurrogate.
constexpr std::size_t row_ints = 7, field_ints = 4;
// Offsets are Int32s.
constexpr std::size_t largest_buffer = std::size_t{1} << 30;

std::vector<FieldPath> paths_argument(const Napi::Value& value) {
  require(value.IsArray(), "paths must be an array");
  const auto list = value.As<Napi::Array>();
  std::vector<FieldPath> paths;
  for (std::uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::Value entry = list.Get(i);
    require(entry.IsArray(), "a path must be an array of names");
    const auto names = entry.As<Napi::Array>();
    FieldPath path;
    for (std::uint32_t j = 0; j < names.Length(); ++j) path.push_back(string_argument(names.Get(j), "a path's name"));
    paths.push_back(std::move(path));
  }
  return paths;
}

class JsonRowsWrap : public Napi::ObjectWrap<JsonRowsWrap> {
 public:
  static Napi::Function define(Napi::Env env) { return DefineClass(env, "JsonRows", {InstanceMethod<&JsonRowsWrap::scan>("scan")}); }

  // new (paths: ReadonlyArray<ReadonlyArray<string>>)
  explicit JsonRowsWrap(const Napi::CallbackInfo& info) : Napi::ObjectWrap<JsonRowsWrap>(info) {
    rows_ = std::make_unique<JsonRows>(paths_argument(info[0]));
  }

 private:
  // scan(input: Uint8Array, start: number, last: boolean, arena: Uint8Array, records: Int32Array): number
  // Fills records with rows from `start` on until the input or the records end; returns how many.
  Napi::Value scan(const Napi::CallbackInfo& info) {
    const auto input = uint8_argument(info[0], "input");
    const auto start = static_cast<std::size_t>(integer_argument(info[1], "start"));
    const bool last = boolean_argument(info[2], "last");
    auto arena = uint8_argument(info[3], "arena");
    auto records = int32_argument(info[4], "records");
    require(input.ElementLength() <= largest_buffer, "input is too long");
    require(start <= input.ElementLength(), "start lies outside the input");
    require(arena.ElementLength() >= input.ElementLength() - start, "the arena is shorter than the input");
    const std::size_t stride = row_ints + field_ints * rows_->field_count();
    const std::size_t capacity = records.ElementLength() / stride;
    std::size_t at = start, used = 0, count = 0;
    for (; count < capacity && at < input.ElementLength(); ++count) {
      if (!rows_->read({input.Data(), input.ElementLength()}, at, last, arena.Data(), used, row_)) break;
      write(records.Data() + count * stride, arena.Data());
      at = row_.next;
    }
    return Napi::Number::New(info.Env(), static_cast<double>(count));
  }

  void write(std::int32_t* out, const std::uint8_t* arena) const {
    const auto put = [&](std::size_t value) { *out++ = value == SIZE_MAX ? -1 : static_cast<std::int32_t>(value); };
    *out++ = static_cast<std::int32_t>(row_.status);
    put(row_.begin);
    put(row_.end);
    put(row_.next);
    put(row_.error_at);
    put(row_.invalid_utf8);
    const FieldValue* text = row_.fields.empty() ? nullptr : row_.fields.data();
    put(text != nullptr && text->kind == ValueKind::string ? count_characters({arena + text->offset, text->length}) : 0);
    for (const FieldValue& field : row_.fields) {
      *out++ = static_cast<std::int32_t>(field.kind);
      put(field.offset);
      put(field.length);
      *out++ = field.lone_surrogate ? 1 : 0;
    }
  }

  std::unique_ptr<JsonRows> rows_;
  Row row_;
};

}  // namespace

Napi::Function define_json_rows(Napi::Env env) { return JsonRowsWrap::define(env); }

}  // namespace tinyllama
