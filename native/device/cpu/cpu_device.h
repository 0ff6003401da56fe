// The CPU backend: fp32, own kernels, instruction set chosen at run time, a fixed pool of threads.
#pragma once
#include <memory>

#include "native/device/device.h"

namespace tinyllama {

// threads >= 1: the calling thread and threads - 1 workers that live as long as the device.
std::unique_ptr<Device> make_cpu_device(int threads);

// "avx512", "avx2", "neon" or "scalar": what the dispatch chose. TINYLLAMA_SIMD=avx2|scalar lowers it, for tests.
const char* cpu_instruction_set();

}  // namespace tinyllama
