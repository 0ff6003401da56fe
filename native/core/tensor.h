// Views on device memory. A Tensor never owns: memory belongs to a Buffer, and the arena that planned it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tinyllama {

enum class DataType : std::uint8_t { f32, bf16 };

constexpr std::int64_t bytes_of(DataType type) { return type == DataType::f32 ? 4 : 2; }

// A row-major matrix view: element (r, c) lies at data[r * stride + c]. Vectors are one row.
struct Tensor {
  void* data = nullptr;
  DataType type = DataType::f32;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t stride = 0;  // elements between the starts of two rows, >= columns

  float* f32() const { return static_cast<float*>(data); }
  // `count` of its rows, from `first` on.
  Tensor slice(std::int64_t first, std::int64_t count) const {
    return {static_cast<std::byte*>(data) + first * stride * bytes_of(type), type, count, columns, stride};
  }
};

inline Tensor matrix(void* data, DataType type, std::int64_t rows, std::int64_t columns) { return {data, type, rows, columns, columns}; }

inline Tensor matrix(float* data, std::int64_t rows, std::int64_t columns) {
  return {data, DataType::f32, rows, columns, columns};
}
inline Tensor vector(float* data, std::int64_t length) { return matrix(data, 1, length); }

}  // namespace tinyllama
