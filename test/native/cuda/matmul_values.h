// What the tests of products share: device memory, reproducible values in either type, and checks that count.
#pragma once
#include <cuda_bf16.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "native/core/tensor.h"
#include "native/device/cuda/cuda_check.h"

namespace tinyllama::check {

inline int failures = 0, checks = 0;

inline bool expect(bool holds, const std::string& what) {
  ++checks;
  if (holds) return true;
  if (++failures <= 40) std::printf("FAILED %s\n", what.c_str());
  return false;
}

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) : bytes_(bytes) { CHECK_CUDA(cudaMalloc(&data_, bytes == 0 ? 1 : bytes)); }
  template <class Value>
  explicit DeviceMemory(const std::vector<Value>& values) : DeviceMemory(values.size() * sizeof(Value)) {
    write(values.data());
  }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  void* data() const { return data_; }
  template <class Value>
  Value* as() const {
    return static_cast<Value*>(data_);
  }
  // Complete on return: the engine's stream does not wait for the default one.
  void write(const void* values) {
    CHECK_CUDA(cudaMemcpy(data_, values, bytes_, cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaDeviceSynchronize());
  }
  template <class Value>
  std::vector<Value> read() const {
    CHECK_CUDA(cudaDeviceSynchronize());
    std::vector<Value> values(bytes_ / sizeof(Value));
    CHECK_CUDA(cudaMemcpy(values.data(), data_, bytes_, cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

inline std::uint64_t mix(std::uint64_t bits) {
  bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9ULL;
  bits = (bits ^ bits >> 27) * 0x94d049bb133111ebULL;
  return bits ^ bits >> 31;
}

// Uniform in [-1, 1); `wide` spreads them over six decimal orders.
inline std::vector<float> values(std::int64_t count, std::uint64_t seed, bool wide = false) {
  std::vector<float> result(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < result.size(); ++i) {
    const std::uint64_t bits = mix(seed * 0x9e3779b97f4a7c15ULL + i + 1);
    const double uniform = static_cast<double>(bits >> 40) / (1 << 23) - 1.0;
    result[i] = static_cast<float>(wide ? uniform * std::pow(10.0, static_cast<double>(bits % 7) - 3.0) : uniform);
  }
  return result;
}

inline std::uint16_t to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return 0x7fff;
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_bf16(std::uint16_t half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void round_to_bf16(std::vector<float>& values) {
  for (float& value : values) value = from_bf16(to_bf16(value));
}

// A matrix on the device inside a larger, NaN-filled one: `offset` elements in front, rows `stride` apart.
class DeviceMatrix {
 public:
  DeviceMatrix(DataType type, std::int64_t rows, std::int64_t columns, std::int64_t stride, std::int64_t offset)
      : type_(type), rows_(rows), columns_(columns), stride_(stride), offset_(offset), memory_(bytes()) {}

  // NaN everywhere, then `values` (rows x columns) where they are given.
  void fill(const std::vector<float>* values) {
    initial_.assign(bytes(), 0xff);
    if (values != nullptr)
      for (std::int64_t r = 0; r < rows_; ++r)
        for (std::int64_t c = 0; c < columns_; ++c) set(r, c, (*values)[static_cast<std::size_t>(r * columns_ + c)]);
    restore();
  }
  void restore() { memory_.write(initial_.data()); }
  Tensor tensor() const { return {memory_.as<char>() + offset_ * element(), type_, rows_, columns_, stride_}; }
  std::vector<unsigned char> read() const { return memory_.read<unsigned char>(); }
  float get(const std::vector<unsigned char>& bytes, std::int64_t row, std::int64_t column) const {
    if (type_ == DataType::f32) {
      float value;
      std::memcpy(&value, bytes.data() + at(row, column), 4);
      return value;
    }
    std::uint16_t half;
    std::memcpy(&half, bytes.data() + at(row, column), 2);
    return from_bf16(half);
  }
  // Whether all that lies outside the matrix is as it was.
  bool untouched_around(std::vector<unsigned char> bytes) const {
    for (std::int64_t r = 0; r < rows_; ++r)
      std::memcpy(bytes.data() + at(r, 0), initial_.data() + at(r, 0), static_cast<std::size_t>(columns_ * element()));
    return bytes == initial_;
  }

 private:
  std::int64_t element() const { return type_ == DataType::f32 ? 4 : 2; }
  std::size_t bytes() const { return static_cast<std::size_t>((offset_ + rows_ * stride_ + 8) * element()); }
  std::size_t at(std::int64_t row, std::int64_t column) const { return static_cast<std::size_t>((offset_ + row * stride_ + column) * element()); }
  void set(std::int64_t row, std::int64_t column, float value) {
    const std::uint16_t half = to_bf16(value);
    if (type_ == DataType::f32)
      std::memcpy(initial_.data() + at(row, column), &value, 4);
    else
      std::memcpy(initial_.data() + at(row, column), &half, 2);
  }

  DataType type_;
  std::int64_t rows_, columns_, stride_, offset_;
  DeviceMemory memory_;
  std::vector<unsigned char> initial_;
};

}  // namespace tinyllama::check
