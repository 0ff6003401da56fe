// The instructions that the attention kernels are made of: matrix fragments (mma.sync m16n8k16, ldmatrix), asynchronous copies, and the swizzle
// that keeps both free of bank conflicts. All from sm_80 on.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace tinyllama::cuda {

__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  return shared_memory;
}
__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// Keeps what is computed from `value` from being computed ahead of a loop, where it would hold registers for the loop's whole length.
__device__ __forceinline__ void recompute(int& value) { asm volatile("" : "+r"(value)); }

// Four 8x8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(std::uint32_t (&fragment)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&fragment)[4], std::uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

// sum(16x8) += a(16x16) · b(16x8). Lane l holds rows l/4 and l/4 + 8, columns 2(l%4) and the next of `sum`.
__device__ __forceinline__ void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Zeros are written where the source is not valid; it is not read then, but must be a legal address.
__device__ __forceinline__ void copy_async_16(std::uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_async_4(std::uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared), "l"(global), "r"(valid ? 4 : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until at most `pending` of the committed groups are under way.
template <int pending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

__device__ __forceinline__ float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}
// Two values rounded to bf16; `low` comes first in memory.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
__device__ __forceinline__ float low_bf16(std::uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(std::uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ int load_acquire(const int* address) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];\n" : "=r"(value) : "l"(address) : "memory");
  return value;
}
__device__ __forceinline__ void store_release(int* address, int value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;\n" ::"l"(address), "r"(value) : "memory");
}

__device__ __forceinline__ void store_shared(std::uint32_t address, std::uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;\n" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ uint4 load_shared_16(std::uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n" : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "r"(address) : "memory");
  return value;
}

// Byte offset of a 16-byte chunk in a tile whose rows hold `columns` bf16. The eight rows of an 8x8 matrix fall on different banks.
template <int columns>
__device__ __forceinline__ std::uint32_t swizzled(int row, int chunk) {
  static_assert(columns == 32 || columns % 64 == 0);
  constexpr int chunks = columns / 8;
  if constexpr (columns == 32) return static_cast<std::uint32_t>((row * chunks + (chunk ^ ((row >> 1) & 3))) * 16);
  return static_cast<std::uint32_t>((row * chunks + (chunk ^ (row & 7))) * 16);
}

// Rows first .. first + rows - 1 of a matrix into a swizzled tile; rows from `limit` on become zeros.
template <int rows, int columns, int threads>
__device__ __forceinline__ void load_tile(std::uint32_t shared, const __nv_bfloat16* matrix, int stride, int first, int limit) {
  constexpr int chunks = columns / 8;
  static_assert(rows * chunks % threads == 0);
#pragma unroll
  for (int i = 0; i < rows * chunks / threads; ++i) {
    const int index = i * threads + static_cast<int>(threadIdx.x), row = index / chunks, chunk = index % chunks;
    const bool valid = first + row < limit;
    const __nv_bfloat16* source = matrix + static_cast<std::int64_t>(valid ? first + row : 0) * stride + chunk * 8;
    copy_async_16(shared + swizzled<columns>(row, chunk), source, valid);
  }
}

// How fragments are read. `start` is a lane's address for the fragment at row 0 and chunk 0, from one of the four functions below; tiles lie at
// multiples of their row's length, so that the swizzle is undone by one exclusive or. Rows are multiples of 8, chunks even.
template <int columns>
__device__ __forceinline__ std::uint32_t fragment_address(std::uint32_t start, int row, int chunk) {
  return (start ^ static_cast<std::uint32_t>(chunk * 16)) + static_cast<std::uint32_t>(row * columns * 2);
}
// Left operand, rows of the tile = rows of the operand, depth along them: 16 rows, two chunks.
template <int columns>
__device__ __forceinline__ std::uint32_t left_start(std::uint32_t tile, int lane) {
  return tile + swizzled<columns>(lane & 15, lane >> 4);
}
// Right operand, rows of the tile = columns of the operand, depth along them: 16 columns, two chunks.
template <int columns>
__device__ __forceinline__ std::uint32_t right_start(std::uint32_t tile, int lane) {
  return tile + swizzled<columns>((lane >> 4) * 8 + (lane & 7), (lane >> 3) & 1);
}
// Right operand, rows of the tile = depth (read transposed): 16 rows, two chunks of columns.
template <int columns>
__device__ __forceinline__ std::uint32_t right_transposed_start(std::uint32_t tile, int lane) {
  return tile + swizzled<columns>(lane & 15, lane >> 4);
}
// Left operand, rows of the tile = depth (read transposed): 16 rows, two chunks of rows.
template <int columns>
__device__ __forceinline__ std::uint32_t left_transposed_start(std::uint32_t tile, int lane) {
  return tile + swizzled<columns>((lane >> 4) * 8 + (lane & 7), (lane >> 3) & 1);
}
// A lane's two neighbouring columns of an accumulator's first row, to be stored.
template <int columns>
__device__ __forceinline__ std::uint32_t sums_start(std::uint32_t tile, int lane) {
  return tile + swizzled<columns>(lane / 4, 0) + static_cast<std::uint32_t>(lane % 4) * 4;
}

}  // namespace tinyllama::cuda
