// Reading JavaScript values, with errors that name the argument.
#pragma once
#include <napi.h>

#include <cmath>
#include <cstdint>
#include <string>

#include "native/core/error.h"

namespace tinyllama {

inline Napi::Object object_argument(const Napi::Value& value, const std::string& name) {
  require(value.IsObject(), name + " must be an object");
  return value.As<Napi::Object>();
}

inline double number_argument(const Napi::Value& value, const std::string& name) {
  require(value.IsNumber(), name + " must be a number");
  return value.As<Napi::Number>().DoubleValue();
}

// An integer that a JavaScript number holds exactly.
inline std::int64_t integer_argument(const Napi::Value& value, const std::string& name) {
  const double number = number_argument(value, name);
  const bool exact = std::trunc(number) == number && std::abs(number) <= 9007199254740991.0;
  require(exact, name + " must be an integer, got " + std::to_string(number));
  return static_cast<std::int64_t>(number);
}

inline bool boolean_argument(const Napi::Value& value, const std::string& name) {
  require(value.IsBoolean(), name + " must be true or false");
  return value.As<Napi::Boolean>().Value();
}

inline std::string string_argument(const Napi::Value& value, const std::string& name) {
  require(value.IsString(), name + " must be a string");
  return value.As<Napi::String>().Utf8Value();
}

// The array stays JavaScript's: copy what must outlive the call.
inline Napi::Float32Array float32_argument(const Napi::Value& value, const std::string& name) {
  require(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_float32_array, name + " must be a Float32Array");
  return value.As<Napi::Float32Array>();
}

inline Napi::Uint8Array uint8_argument(const Napi::Value& value, const std::string& name) {
  require(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array, name + " must be a Uint8Array");
  return value.As<Napi::Uint8Array>();
}

inline Napi::Uint32Array uint32_argument(const Napi::Value& value, const std::string& name) {
  require(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint32_array, name + " must be a Uint32Array");
  return value.As<Napi::Uint32Array>();
}

inline Napi::Int32Array int32_argument(const Napi::Value& value, const std::string& name) {
  require(value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_int32_array, name + " must be an Int32Array");
  return value.As<Napi::Int32Array>();
}

}  // namespace tinyllama
