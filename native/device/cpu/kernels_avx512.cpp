#include "native/device/cpu/kernel_table.h"
#include "native/device/cpu/simd_avx512.h"

namespace tinyllama {

const Kernels& avx512_kernels() { return kernel_table<Avx512>; }

}  // namespace tinyllama
