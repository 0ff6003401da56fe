#include "native/device/cpu/kernel_table.h"
#include "native/device/cpu/simd_neon.h"

namespace tinyllama {

const Kernels& neon_kernels() { return kernel_table<Neon>; }

}  // namespace tinyllama
