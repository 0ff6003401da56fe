// Hopper's instructions (sm_90a) that the fast attention kernels are made of: products of a warp-group of four warps on tiles in shared memory,
// tile copies by the tensor memory accelerator, and the barriers that order the two.
//
// A tile in shared memory is a row of panels of 64 bf16 columns (128 bytes); a panel holds all of the tile's rows one after the other, and
// the 16-byte chunks of a row are swizzled by the row's last three bits. Panels start at multiples of 1024 bytes.
#pragma once
#include "native/device/cuda/attention_warp.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TINYLLAMA_WARPGROUP_CODE 1
#endif

#ifdef TINYLLAMA_WARPGROUP_CODE
namespace tinyllama::cuda {

// Describes a tile to the tensor core: 128-byte swizzle, groups of eight rows 1024 bytes apart. `panel_bytes` is the distance of panels where the
// product runs over more than one of them along the tile's columns (depth along the rows).
__device__ __forceinline__ std::uint64_t tile_descriptor(std::uint32_t address, std::uint32_t panel_bytes = 1024) {
  return static_cast<std::uint64_t>(address >> 4) | static_cast<std::uint64_t>(panel_bytes >> 4) << 16 | static_cast<std::uint64_t>(1024 >> 4) << 32 |
         static_cast<std::uint64_t>(1) << 62;
}

// sums(64 x N) = [sums +] a(64x16) · b(16xN), asynchronously. Lane l of warp w holds rows 16w + l/4 and 8 later, as with multiply_add. Transposed
// means that depth runs along the tile's rows. `a` in registers is laid out as multiply_add's.
#define F(x) "+f"((x)[0]), "+f"((x)[1]), "+f"((x)[2]), "+f"((x)[3])
template <int transpose_a, int transpose_b>
__device__ __forceinline__ void group_multiply(float (&sums)[8][4], std::uint64_t a, std::uint64_t b, int add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
      ", %32, %33, p, 1, 1, %35, %36; }\n"
      : F(sums[0]), F(sums[1]), F(sums[2]), F(sums[3]), F(sums[4]), F(sums[5]), F(sums[6]), F(sums[7])
      : "l"(a), "l"(b), "r"(add), "n"(transpose_a), "n"(transpose_b));
}
template <int transpose_b>
__device__ __forceinline__ void group_multiply(float (&sums)[8][4], const std::uint32_t (&a)[4], std::uint64_t b, int add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
      ", {%32,%33,%34,%35}, %36, p, 1, 1, %38; }\n"
      : F(sums[0]), F(sums[1]), F(sums[2]), F(sums[3]), F(sums[4]), F(sums[5]), F(sums[6]), F(sums[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(transpose_b));
}
template <int transpose_a, int transpose_b>
__device__ __forceinline__ void group_multiply(float (&sums)[16][4], std::uint64_t a, std::uint64_t b, int add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
      ", %64, %65, p, 1, 1, %67, %68; }\n"
      : F(sums[0]), F(sums[1]), F(sums[2]), F(sums[3]), F(sums[4]), F(sums[5]), F(sums[6]), F(sums[7]),
        F(sums[8]), F(sums[9]), F(sums[10]), F(sums[11]), F(sums[12]), F(sums[13]), F(sums[14]), F(sums[15])
      : "l"(a), "l"(b), "r"(add), "n"(transpose_a), "n"(transpose_b));
}
template <int transpose_b>
__device__ __forceinline__ void group_multiply(float (&sums)[16][4], const std::uint32_t (&a)[4], std::uint64_t b, int add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
      ", {%64,%65,%66,%67}, %68, p, 1, 1, %70; }\n"
      : F(sums[0]), F(sums[1]), F(sums[2]), F(sums[3]), F(sums[4]), F(sums[5]), F(sums[6]), F(sums[7]),
        F(sums[8]), F(sums[9]), F(sums[10]), F(sums[11]), F(sums[12]), F(sums[13]), F(sums[14]), F(sums[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(transpose_b));
}
#undef F

// Before the first product that reads or writes registers which other instructions wrote.
__device__ __forceinline__ void group_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ __forceinline__ void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Until at most `pending` of the committed groups of products are under way.
template <int pending>
__device__ __forceinline__ void group_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(pending) : "memory");
}
// Keeps the compiler from moving uses of a product's registers over this place.
template <int N>
__device__ __forceinline__ void hold(float (&values)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) asm volatile("" : "+f"(values[n][0]), "+f"(values[n][1]), "+f"(values[n][2]), "+f"(values[n][3])::"memory");
}
template <int N>
__device__ __forceinline__ void hold(std::uint32_t (&values)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n) asm volatile("" : "+r"(values[n][0]), "+r"(values[n][1]), "+r"(values[n][2]), "+r"(values[n][3])::"memory");
}

// Barriers in shared memory; waiting is for the end of the phase of parity `parity`.
__device__ __forceinline__ void barrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, int parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// Ordinary accesses to shared memory before this are seen by tensor products and tile copies after it.
__device__ __forceinline__ void publish_shared() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// A box of 64 columns of a (sequence, row, column) matrix into a panel; rows behind the sequence's end become zeros.
__device__ __forceinline__ void copy_panel(std::uint32_t shared, const void* map, int column, int row, int sequence, std::uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];\n" ::"r"(shared),
               "l"(map), "r"(column), "r"(row), "r"(sequence), "r"(barrier)
               : "memory");
}

// `bytes` from global memory, both 16-byte aligned and a multiple of 16.
__device__ __forceinline__ void copy_bytes(std::uint32_t shared, const void* global, int bytes, std::uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(shared), "l"(global), "r"(bytes),
               "r"(barrier)
               : "memory");
}

// Adds one to a counter in shared memory and gives what it was, after this thread's earlier accesses.
__device__ __forceinline__ int count_shared(std::uint32_t address) {
  int before;
  asm volatile("atom.acq_rel.cta.shared::cta.add.u32 %0, [%1], 1;\n" : "=r"(before) : "r"(address) : "memory");
  return before;
}

// Moves registers from one warp-group to others; all warps of the group execute it.
template <int registers>
__device__ __forceinline__ void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(registers));
}

// The hardware's numbered barriers, for `threads` threads that wait or only arrive.
__device__ __forceinline__ void numbered_wait(int id, int threads) { asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory"); }
__device__ __forceinline__ void numbered_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory"); }

}  // namespace tinyllama::cuda
#endif
