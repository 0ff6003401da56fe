// bf16 products on the tensor cores of Ampere and later (mma.sync m16n8k16, fp32 accumulation).
//
// One block of 8 warps owns a tile of M x N outputs and walks K in steps of `k`: cp.async fills a ring of `stages` pairs of operand tiles in
// shared memory, ldmatrix feeds the fragments. An operand lies in shared memory as it lies in device memory, [M or N][K] or [K][M or N];
// ldmatrix.trans turns the second kind. Rows are cut into chunks of 16 bytes whose places are permuted (chunk ^ row), so that the 8 rows of an
// ldmatrix hit 8 different groups of banks.
// Device memory traffic at least: each operand once, the output once (twice when it is added to). Blocks are numbered so that those at work at
// one time share rows of A and of B in L2.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace tinyllama::cuda {

struct Bf16Product {
  const __nv_bfloat16* a;
  const __nv_bfloat16* b;
  void* out;
  std::int64_t stride_a, stride_b, stride_out;
  std::int32_t m, n, k;
  bool out_is_f32;
  bool accumulate;
  bool pairs;  // two neighbours of an output row can be written at once
};

template <int m_, int n_, int k_, int stages_, int warps_m_, int warps_n_, int blocks_>
struct MmaTile {
  static constexpr int m = m_, n = n_, k = k_, stages = stages_;
  static constexpr int warps_m = warps_m_, warps_n = warps_n_;
  static constexpr int threads = 32 * warps_m * warps_n;
  static constexpr int blocks = blocks_;  // per multiprocessor, which bounds the registers
  static constexpr int fragments_m = m / warps_m / 16, fragments_n = n / warps_n / 8;
  static constexpr int shared_bytes = stages * (m + n) * k * 2;
};

__device__ inline std::uint32_t shared_address(const void* pointer) { return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer)); }

// 16 bytes, of which those from `bytes` on are zeros and are not read.
__device__ inline void copy_async(std::uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void close_copy_group() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int newer>
__device__ inline void wait_copy_groups() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(newer) : "memory");
}

template <bool transposed>
__device__ inline void load_matrices(std::uint32_t (&to)[4], std::uint32_t address) {
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

__device__ inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// An operand's tile: `length` outputs (rows of A's M, or columns of B's N) by `depth` of K. k_inner: K runs along the rows in memory.
// vectors: rows start on 16 bytes, so that cp.async can be used; else elements are copied one by one.
template <int length, int depth, bool k_inner, bool vectors, int threads>
class OperandTile {
 public:
  static constexpr int rows = k_inner ? length : depth;
  static constexpr int chunks = (k_inner ? depth : length) / 8;  // per row
  static constexpr int bytes = length * depth * 2;
  static constexpr int copies = rows * chunks / threads;         // per thread
  static_assert(rows * chunks % threads == 0 && (chunks == 4 || chunks % 8 == 0));

  // first: the tile's first output; outputs, k: the operand's whole size.
  __device__ OperandTile(const __nv_bfloat16* operand, std::int64_t stride, int first, int outputs, int k) : step_(k_inner ? depth : depth * stride), k_(k) {
#pragma unroll
    for (int i = 0; i < copies; ++i) {
      const int row = (threadIdx.x + i * threads) / chunks, column = (threadIdx.x + i * threads) % chunks * 8;
      const int output = first + (k_inner ? row : column);
      const int left = outputs - output;
      width_[i] = left <= 0 ? 0 : (k_inner || left >= 8 ? 8 : left);
      depth_[i] = k_inner ? column : row;
      from_[i] = left <= 0 ? operand : operand + static_cast<std::int64_t>(k_inner ? output : row) * stride + (k_inner ? column : output);
    }
  }

  // Starts the copy of the next tile along K into `shared`; `k` is where it begins.
  __device__ void copy(std::uint32_t shared, int k) {
#pragma unroll
    for (int i = 0; i < copies; ++i) {
      const int row = (threadIdx.x + i * threads) / chunks, chunk = (threadIdx.x + i * threads) % chunks;
      const int left = k_ - k - depth_[i];
      const int count = k_inner ? (width_[i] == 0 ? 0 : max(0, min(8, left))) : (left > 0 ? width_[i] : 0);
      const std::uint32_t to = shared + place(row, chunk);
      if constexpr (vectors) {
        copy_async(to, from_[i], 2 * count);
      } else {
        std::uint32_t words[4];
        const unsigned short* elements = reinterpret_cast<const unsigned short*>(from_[i]);
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const std::uint32_t low = 2 * word < count ? elements[2 * word] : 0, high = 2 * word + 1 < count ? elements[2 * word + 1] : 0;
          words[word] = low | high << 16;
        }
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                     : "memory");
      }
      from_[i] += step_;
    }
  }

  // Byte offset of a chunk. With 4 chunks a row, two rows share the 128 bytes that the banks span.
  __device__ static std::uint32_t place(int row, int chunk) {
    return static_cast<std::uint32_t>(row * chunks + (chunk ^ (chunks == 4 ? row >> 1 & 3 : row & 7))) * 16;
  }

  // The 16 outputs x 16 of K at (output, k) of the tile, as four 8 x 8 matrices. k_second: the order of the four is (outputs low, k low),
  // (low, high), (high, low), (high, high), as B needs it; else the middle two change places, as A needs it.
  template <bool k_second>
  __device__ static void fragment(std::uint32_t (&to)[4], std::uint32_t shared, int output, int k) {
    const int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8, line = lane % 8;
    const int high_output = k_second ? matrix / 2 : matrix % 2, high_k = k_second ? matrix % 2 : matrix / 2;
    if constexpr (k_inner)
      load_matrices<false>(to, shared + place(output + high_output * 8 + line, k / 8 + high_k));
    else
      load_matrices<true>(to, shared + place(k + high_k * 8 + line, output / 8 + high_output));
  }

 private:
  const __nv_bfloat16* from_[copies];
  std::int64_t step_;
  int k_;
  int width_[copies];  // elements of the chunk inside the operand, along the outputs; k_inner: 8 or 0
  int depth_[copies];  // where in the tile's K the chunk begins
};

template <class Product>
__device__ inline void store_pair(const Product& product, int row, int column, float first, float second) {
  if (row >= product.m || column >= product.n) return;
  const std::int64_t at = row * product.stride_out + column;
  const bool both = column + 1 < product.n;
  if (product.out_is_f32) {
    float* out = static_cast<float*>(product.out) + at;
    if (both && product.pairs) {
      float2 pair{first, second};
      if (product.accumulate) {
        const float2 old = *reinterpret_cast<const float2*>(out);
        pair.x += old.x, pair.y += old.y;
      }
      *reinterpret_cast<float2*>(out) = pair;
      return;
    }
    out[0] = product.accumulate ? out[0] + first : first;
    if (both) out[1] = product.accumulate ? out[1] + second : second;
    return;
  }
  __nv_bfloat16* out = static_cast<__nv_bfloat16*>(product.out) + at;
  if (product.accumulate) {
    first += __bfloat162float(out[0]);
    if (both) second += __bfloat162float(out[1]);
  }
  if (both && product.pairs) {
    *reinterpret_cast<__nv_bfloat162*>(out) = __floats2bfloat162_rn(first, second);
    return;
  }
  out[0] = __float2bfloat16_rn(first);
  if (both) out[1] = __float2bfloat16_rn(second);
}

// Grid: one block per output tile. Tiles are numbered down bands of 8 tiles of M, so that blocks at work together read the same rows.
template <class Tile, bool transpose_a, bool transpose_b, bool vectors>
__global__ void __launch_bounds__(Tile::threads, Tile::blocks) mma_product(const Bf16Product product) {
  extern __shared__ __align__(128) unsigned char shared_memory[];
  using TileA = OperandTile<Tile::m, Tile::k, !transpose_a, vectors, Tile::threads>;
  using TileB = OperandTile<Tile::n, Tile::k, transpose_b, vectors, Tile::threads>;
  constexpr int stage_bytes = TileA::bytes + TileB::bytes;
  const std::uint32_t shared = shared_address(shared_memory);

  constexpr int band = 8;
  const int tiles_m = (product.m + Tile::m - 1) / Tile::m, tiles_n = (product.n + Tile::n - 1) / Tile::n;
  const int in_band = static_cast<int>(blockIdx.x) % (band * tiles_n), first_in_band = static_cast<int>(blockIdx.x) / (band * tiles_n) * band;
  const int band_rows = min(band, tiles_m - first_in_band);
  const int first_m = (first_in_band + in_band % band_rows) * Tile::m, first_n = in_band / band_rows * Tile::n;

  TileA a(product.a, product.stride_a, first_m, product.m, product.k);
  TileB b(product.b, product.stride_b, first_n, product.n, product.k);
  const int steps = (product.k + Tile::k - 1) / Tile::k;

#pragma unroll
  for (int stage = 0; stage < Tile::stages - 1; ++stage) {
    if (stage < steps) {
      a.copy(shared + stage * stage_bytes, stage * Tile::k);
      b.copy(shared + stage * stage_bytes + TileA::bytes, stage * Tile::k);
    }
    close_copy_group();
  }

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_m = warp % Tile::warps_m * (Tile::m / Tile::warps_m), warp_n = warp / Tile::warps_m * (Tile::n / Tile::warps_n);
  float sums[Tile::fragments_m][Tile::fragments_n][4] = {};

  int reading = 0, filling = Tile::stages - 1;
  for (int step = 0; step < steps; ++step) {
    wait_copy_groups<Tile::stages - 2>();
    __syncthreads();  // the stage has arrived for all, and all are done with the one that is filled next
    if (const int next = step + Tile::stages - 1; next < steps) {
      a.copy(shared + filling * stage_bytes, next * Tile::k);
      b.copy(shared + filling * stage_bytes + TileA::bytes, next * Tile::k);
    }
    close_copy_group();

    const std::uint32_t stage_a = shared + reading * stage_bytes, stage_b = stage_a + TileA::bytes;
#pragma unroll
    for (int k = 0; k < Tile::k; k += 16) {
      std::uint32_t left[Tile::fragments_m][4], right[Tile::fragments_n / 2][4];
#pragma unroll
      for (int i = 0; i < Tile::fragments_m; ++i) TileA::template fragment<false>(left[i], stage_a, warp_m + 16 * i, k);
#pragma unroll
      for (int j = 0; j < Tile::fragments_n / 2; ++j) TileB::template fragment<true>(right[j], stage_b, warp_n + 16 * j, k);
#pragma unroll
      for (int i = 0; i < Tile::fragments_m; ++i)
#pragma unroll
        for (int j = 0; j < Tile::fragments_n; ++j) multiply_add(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
    }
    reading = reading + 1 == Tile::stages ? 0 : reading + 1;
    filling = filling + 1 == Tile::stages ? 0 : filling + 1;
  }
  wait_copy_groups<0>();

  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < Tile::fragments_m; ++i)
#pragma unroll
    for (int j = 0; j < Tile::fragments_n; ++j) {
      const int row = first_m + warp_m + 16 * i + lane / 4, column = first_n + warp_n + 8 * j + lane % 4 * 2;
      store_pair(product, row, column, sums[i][j][0], sums[i][j][1]);
      store_pair(product, row + 8, column, sums[i][j][2], sums[i][j][3]);
    }
}

}  // namespace tinyllama::cuda
