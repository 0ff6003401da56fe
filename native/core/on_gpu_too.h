// Marks functions that kernels call too. constexpr functions need no mark: nvcc is told to allow them (--expt-relaxed-constexpr).
#pragma once

#ifdef __CUDACC__
#define TINYLLAMA_ON_GPU_TOO __host__ __device__
#else
#define TINYLLAMA_ON_GPU_TOO
#endif
