#include <cstdlib>
#include <string>

#include "native/core/error.h"
#include "native/device/cpu/cpu_device.h"
#include "native/device/cpu/kernels.h"

namespace tinyllama {

const Kernels& select_kernels() {
  const char* variable = std::getenv("TINYLLAMA_SIMD");
  const std::string limit = variable ? variable : "";
  require(limit.empty() || limit == "avx512" || limit == "avx2" || limit == "neon" || limit == "scalar",
          "TINYLLAMA_SIMD is \"" + limit + "\"; it may be avx512, avx2, neon or scalar");
#if defined(__x86_64__)
  if (limit != "scalar") {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    if (avx2 && avx512 && limit != "avx2") return avx512_kernels();
    if (avx2) return avx2_kernels();
  }
#elif defined(__aarch64__)
  if (limit != "scalar") return neon_kernels();
#endif
  return scalar_kernels();
}

const char* cpu_instruction_set() { return select_kernels().name; }

}  // namespace tinyllama
