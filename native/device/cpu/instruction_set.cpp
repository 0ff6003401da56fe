#include "native/core/instruction_set.h"

#include "native/device/cpu/cpu_device.h"
#include "native/device/cpu/kernels.h"

namespace tinyllama {

const Kernels& select_kernels() {
  switch (instruction_set()) {
#if defined(__x86_64__)
    case InstructionSet::avx512: return avx512_kernels();
    case InstructionSet::avx2: return avx2_kernels();
#elif defined(__aarch64__)
    case InstructionSet::neon: return neon_kernels();
#endif
    default: return scalar_kernels();
  }
}

const char* cpu_instruction_set() { return select_kernels().name; }

}  // namespace tinyllama
