#include "native/core/instruction_set.h"

#include <cstdlib>
#include <string>

#include "native/core/error.h"

namespace tinyllama {

InstructionSet instruction_set() {
  const char* variable = std::getenv("TINYLLAMA_SIMD");
  const std::string limit = variable ? variable : "";
  require(limit.empty() || limit == "avx512" || limit == "avx2" || limit == "neon" || limit == "scalar",
          "TINYLLAMA_SIMD is \"" + limit + "\"; it may be avx512, avx2, neon or scalar");
  if (limit == "scalar") return InstructionSet::scalar;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx2 && avx512 && limit != "avx2") return InstructionSet::avx512;
  return avx2 ? InstructionSet::avx2 : InstructionSet::scalar;
#elif defined(__aarch64__)
  return InstructionSet::neon;
#else
  return InstructionSet::scalar;
#endif
}

}  // namespace tinyllama
