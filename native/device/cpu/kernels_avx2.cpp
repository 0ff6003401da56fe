#include "native/device/cpu/kernel_table.h"
#include "native/device/cpu/simd_avx2.h"

namespace tinyllama {

const Kernels& avx2_kernels() { return kernel_table<Avx2>; }

}  // namespace tinyllama
