#include "native/device/cpu/kernel_table.h"
#include "native/device/cpu/simd_scalar.h"

namespace tinyllama {

const Kernels& scalar_kernels() { return kernel_table<Scalar>; }

}  // namespace tinyllama
