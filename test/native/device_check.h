// What the tests of the device's operations share: reproducible values, comparisons that name what failed, and a loop over the instruction
// sets this machine has and over thread counts.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "native/device/cpu/cpu_device.h"

namespace tinyllama::check {

inline int failures = 0;

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

// Uniform in [-1, 1), the same everywhere (splitmix64).
inline std::vector<float> values(std::int64_t count, std::uint64_t seed) {
  std::vector<float> result(static_cast<std::size_t>(count));
  std::uint64_t state = seed * 0x9e3779b97f4a7c15ULL + 1;
  for (float& value : result) {
    std::uint64_t bits = state += 0x9e3779b97f4a7c15ULL;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9ULL;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebULL;
    value = static_cast<float>(static_cast<double>(bits >> 40) / (1 << 23) - 1.0);
  }
  return result;
}

// |got - want| <= limit * (largest |want|, at least `floor`).
inline void expect_near(const std::vector<float>& got, const std::vector<double>& want, double limit, const std::string& what,
                        double floor = 1e-3) {
  double scale = floor, worst = 0;
  std::size_t at = 0;
  bool finite = got.size() == want.size();
  for (const double value : want) scale = std::max(scale, std::abs(value));
  for (std::size_t i = 0; i < got.size() && i < want.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - want[i]);
    finite = finite && std::isfinite(got[i]);
    if (error > worst) worst = error, at = i;
  }
  expect(finite && worst <= limit * scale,
         what + ": error " + std::to_string(worst / scale * 1e6) + "e-6 of the range at " + std::to_string(at) + ", limit " +
             std::to_string(limit * 1e6) + "e-6");
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline Tensor view(std::vector<float>& memory, std::int64_t rows, std::int64_t columns, std::int64_t stride = 0) {
  return {memory.data(), DataType::f32, rows, columns, stride ? stride : columns};
}

using Outputs = std::vector<std::vector<float>>;

// Runs `operation` under every instruction set that TINYLLAMA_SIMD can choose here, with 1, 2 and 3 threads. Each time `verify` sees the
// outputs of one thread; more threads must give the same bits.
inline void on_every_device(const std::string& name, const std::function<Outputs(Device&)>& operation,
                            const std::function<void(const Outputs&, const std::string&)>& verify) {
  std::string last;
  for (const char* limit : {"avx512", "avx2", "neon", "scalar"}) {
    setenv("TINYLLAMA_SIMD", limit, 1);
    const std::string set = cpu_instruction_set();
    if (set == last) continue;
    last = set;
    const Outputs one = operation(*make_cpu_device(1));
    verify(one, name + " [" + set + "]");
    for (const int threads : {2, 3}) {
      const Outputs more = operation(*make_cpu_device(threads));
      bool same = one.size() == more.size();
      for (std::size_t i = 0; same && i < one.size(); ++i) same = same_bits(one[i], more[i]);
      expect(same, name + " [" + set + "]: " + std::to_string(threads) + " threads give other bits than one");
    }
  }
  unsetenv("TINYLLAMA_SIMD");
}

inline int report(const char* program) {
  std::printf("%s: %s\n", program, failures == 0 ? "passed" : (std::to_string(failures) + " checks failed").c_str());
  return failures == 0 ? 0 : 1;
}

}  // namespace tinyllama::check
