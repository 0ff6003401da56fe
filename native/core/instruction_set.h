// Which instructions this process may use: what the machine has, lowered by TINYLLAMA_SIMD=avx512|avx2|neon|scalar.
#pragma once

namespace tinyllama {

enum class InstructionSet { scalar, neon, avx2, avx512 };

// avx2 stands for AVX2, FMA and BMI2; avx512 for these and AVX-512 F, BW, VL and DQ. Throws Error for a value of TINYLLAMA_SIMD that names no
// instruction set.
InstructionSet instruction_set();

}  // namespace tinyllama
