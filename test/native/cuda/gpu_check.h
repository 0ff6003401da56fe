// What the tests of the GPU's operations share: values in memory of the device in either type, outputs poisoned before each run, comparison with an
// fp64 reference, and equal bits of two runs.
#pragma once
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "native/core/tensor.h"
#include "native/device/cuda/cuda_context.h"

namespace tinyllama::check {

inline int checks = 0, failures = 0;

inline void expect(bool holds, const std::string& what) {
  ++checks;
  if (holds) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

using Doubles = std::vector<double>;

inline float rounded(double value, DataType type) {
  const float single = static_cast<float>(value);
  return type == DataType::f32 ? single : __bfloat162float(__float2bfloat16_rn(single));
}

// Normal values, as `type` holds them.
inline Doubles normals(std::int64_t count, DataType type, std::mt19937_64& random, double deviation = 1.0) {
  std::normal_distribution<double> normal(0.0, deviation);
  Doubles values(static_cast<std::size_t>(count));
  for (double& value : values) value = static_cast<double>(rounded(normal(random), type));
  return values;
}

// Device memory of one type, with `margin` poisoned bytes on both sides that an operation must not touch.
class DeviceValues {
 public:
  DeviceValues(std::int64_t count, DataType type, std::int64_t shift = 0) : count_(count), type_(type), shift_(shift) {
    CHECK_CUDA(cudaMalloc(&memory_, bytes() + 2 * margin));
    poison();
  }
  DeviceValues(const Doubles& values, DataType type, std::int64_t shift = 0) : DeviceValues(static_cast<std::int64_t>(values.size()), type, shift) {
    set(values);
  }
  ~DeviceValues() { cudaFree(memory_); }
  DeviceValues(const DeviceValues&) = delete;
  DeviceValues& operator=(const DeviceValues&) = delete;

  void* data() const { return static_cast<char*>(memory_) + margin + shift_ * bytes_of(type_); }
  float* f32() const { return static_cast<float*>(data()); }
  Tensor view(std::int64_t rows, std::int64_t columns, std::int64_t stride = 0) const {
    return {data(), type_, rows, columns, stride ? stride : columns};
  }
  // All bits one: NaN in either type. The engine's stream does not wait for the default stream, so both setters do.
  void poison() {
    CHECK_CUDA(cudaMemset(memory_, 0xff, bytes() + 2 * margin));
    CHECK_CUDA(cudaDeviceSynchronize());
  }
  void set(const Doubles& values) {
    std::vector<float> singles(values.begin(), values.end());
    std::vector<__nv_bfloat16> halves;
    for (const float value : singles) halves.push_back(__float2bfloat16_rn(value));
    const void* source = type_ == DataType::f32 ? static_cast<const void*>(singles.data()) : halves.data();
    CHECK_CUDA(cudaMemcpy(data(), source, values.size() * static_cast<std::size_t>(bytes_of(type_)), cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaDeviceSynchronize());
  }
  std::vector<char> raw() const {
    std::vector<char> result(static_cast<std::size_t>(count_ * bytes_of(type_)));
    CHECK_CUDA(cudaMemcpy(result.data(), data(), result.size(), cudaMemcpyDeviceToHost));
    return result;
  }
  Doubles get() const {
    const std::vector<char> bits = raw();
    Doubles result(static_cast<std::size_t>(count_));
    for (std::size_t i = 0; i < result.size(); ++i) {
      if (type_ == DataType::f32) {
        float value;
        std::memcpy(&value, bits.data() + i * 4, 4);
        result[i] = static_cast<double>(value);
      } else {
        std::uint16_t half;
        std::memcpy(&half, bits.data() + i * 2, 2);
        const std::uint32_t word = static_cast<std::uint32_t>(half) << 16;
        float value;
        std::memcpy(&value, &word, 4);
        result[i] = static_cast<double>(value);
      }
    }
    return result;
  }
  // Whether the bytes around the values are still poison.
  bool margins_kept() const {
    std::vector<unsigned char> all(bytes() + 2 * margin);
    CHECK_CUDA(cudaMemcpy(all.data(), memory_, all.size(), cudaMemcpyDeviceToHost));
    const std::size_t first = margin + static_cast<std::size_t>(shift_ * bytes_of(type_)), last = first + static_cast<std::size_t>(count_ * bytes_of(type_));
    for (std::size_t i = 0; i < all.size(); ++i)
      if ((i < first || i >= last) && all[i] != 0xff) return false;
    return true;
  }

 private:
  static constexpr std::size_t margin = 256;
  std::size_t bytes() const { return static_cast<std::size_t>((count_ + shift_) * bytes_of(type_)); }

  void* memory_ = nullptr;
  std::int64_t count_;
  DataType type_;
  std::int64_t shift_;
};

// |got - want| <= relative * |want| + absolute, for every element.
inline void expect_close(const Doubles& got, const Doubles& want, double relative, double absolute, const std::string& what) {
  double worst = 0;
  std::size_t at = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double share = std::abs(got[i] - want[i]) / (relative * std::abs(want[i]) + absolute);
    if (!(share <= worst)) worst = share, at = i;
    if (std::isnan(share)) {
      worst = share;
      break;
    }
  }
  expect(got.size() == want.size() && worst <= 1.0,
         what + ": " + std::to_string(worst) + " of the limit at " + std::to_string(at) +
             (want.empty() ? "" : ", got " + std::to_string(got[at]) + ", want " + std::to_string(want[at])));
}

inline int report(const char* program) {
  std::printf("%s: %d checks, %s\n", program, checks, failures == 0 ? "passed" : (std::to_string(failures) + " failed").c_str());
  return failures == 0 ? 0 : 1;
}

}  // namespace tinyllama::check
