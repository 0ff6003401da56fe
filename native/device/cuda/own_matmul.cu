#include "native/device/cuda/own_matmul.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "native/device/cuda/own_matmul_bf16.cuh"
#include "native/device/cuda/own_matmul_f32.cuh"

namespace tinyllama::cuda {
namespace {

// 64 kB of shared memory, two blocks a multiprocessor where it has the room.
using Small = MmaTile<128, 128, 32, 4, 2, 4, 2>;
// 96 kB: fits every GPU from 8.0 on. 64 x 64 outputs a warp, so a fragment that was loaded is used four or eight times.
using Large = MmaTile<128, 256, 32, 4, 2, 4, 1>;
// 144 kB: half as many barriers; 8.0 and 9.0 only.
using Deep = MmaTile<128, 256, 64, 3, 2, 4, 1>;

bool aligned(const void* pointer, std::int64_t stride, std::int64_t element_bytes, std::int64_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % static_cast<std::uintptr_t>(bytes) == 0 && stride * element_bytes % bytes == 0;
}

template <class Tile, bool transpose_a, bool transpose_b, bool vectors>
void launch(CudaContext& context, const Bf16Product& product) {
  const auto kernel = mma_product<Tile, transpose_a, transpose_b, vectors>;
  require(static_cast<std::size_t>(Tile::shared_bytes) <= context.properties().sharedMemPerBlockOptin,
          "this GPU has too little shared memory for the tile of the product");
  CHECK_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::shared_bytes));
  const std::int64_t tiles = ((product.m + Tile::m - 1) / Tile::m) * static_cast<std::int64_t>((product.n + Tile::n - 1) / Tile::n);
  require(tiles <= std::numeric_limits<std::int32_t>::max(), "a product has too many tiles for one launch");
  kernel<<<static_cast<unsigned>(tiles), Tile::threads, Tile::shared_bytes, context.stream()>>>(product);
  CHECK_LAUNCH("mma_product");
}

template <class Tile, bool vectors>
void launch(CudaContext& context, const Bf16Product& product, bool transpose_a, bool transpose_b) {
  if (transpose_a && transpose_b) return launch<Tile, true, true, vectors>(context, product);
  if (transpose_a) return launch<Tile, true, false, vectors>(context, product);
  if (transpose_b) return launch<Tile, false, true, vectors>(context, product);
  launch<Tile, false, false, vectors>(context, product);
}

// Time of a product in arbitrary units: waves of blocks times a block's work. A large tile does the same work about 1.2 times as fast.
template <class Tile>
double forecast(const CudaContext& context, std::int64_t m, std::int64_t n, double rate) {
  const std::int64_t tiles = ((m + Tile::m - 1) / Tile::m) * ((n + Tile::n - 1) / Tile::n), at_once = context.multiprocessors() * Tile::blocks;
  return static_cast<double>((tiles + at_once - 1) / at_once) * Tile::m * Tile::n * Tile::blocks / rate;
}

OwnTile choose_tile(const CudaContext& context, std::int64_t m, std::int64_t n) {
  if (forecast<Small>(context, m, n, 1.0) <= forecast<Large>(context, m, n, 1.2)) return OwnTile::m128_n128_k32;
  return context.properties().sharedMemPerBlockOptin >= Deep::shared_bytes ? OwnTile::m128_n256_k64 : OwnTile::m128_n256_k32;
}

void multiply_bf16(CudaContext& context, const Tensor& out, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b,
                   bool accumulate, OwnTile tile) {
  Bf16Product product{static_cast<const __nv_bfloat16*>(a.data),
                      static_cast<const __nv_bfloat16*>(b.data),
                      out.data,
                      a.stride,
                      b.stride,
                      out.stride,
                      static_cast<std::int32_t>(out.rows),
                      static_cast<std::int32_t>(out.columns),
                      static_cast<std::int32_t>(transpose_a ? a.rows : a.columns),
                      out.type == DataType::f32,
                      accumulate,
                      false};
  product.pairs = aligned(out.data, out.stride, product.out_is_f32 ? 4 : 2, product.out_is_f32 ? 8 : 4);
  if (!aligned(a.data, a.stride, 2, 16) || !aligned(b.data, b.stride, 2, 16))
    return launch<Small, false>(context, product, transpose_a, transpose_b);
  if (tile == OwnTile::automatic) tile = choose_tile(context, out.rows, out.columns);
  switch (tile) {
    case OwnTile::m128_n256_k64: return launch<Deep, true>(context, product, transpose_a, transpose_b);
    case OwnTile::m128_n256_k32: return launch<Large, true>(context, product, transpose_a, transpose_b);
    default: return launch<Small, true>(context, product, transpose_a, transpose_b);
  }
}

template <bool transpose_a, bool transpose_b>
void launch(CudaContext& context, const F32Product& product) {
  const std::int64_t tiles =
      ((product.m + f32_tile - 1) / f32_tile) * static_cast<std::int64_t>((product.n + f32_tile - 1) / f32_tile);
  require(tiles <= std::numeric_limits<std::int32_t>::max(), "a product has too many tiles for one launch");
  ffma_product<transpose_a, transpose_b><<<static_cast<unsigned>(tiles), f32_threads, 0, context.stream()>>>(product);
  CHECK_LAUNCH("ffma_product");
}

void multiply_f32(CudaContext& context, const Tensor& out, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b,
                  bool accumulate) {
  const F32Product product{a.f32(),
                           b.f32(),
                           out.f32(),
                           a.stride,
                           b.stride,
                           out.stride,
                           static_cast<std::int32_t>(out.rows),
                           static_cast<std::int32_t>(out.columns),
                           static_cast<std::int32_t>(transpose_a ? a.rows : a.columns),
                           accumulate};
  if (transpose_a && transpose_b) return launch<true, true>(context, product);
  if (transpose_a) return launch<true, false>(context, product);
  if (transpose_b) return launch<false, true>(context, product);
  launch<false, false>(context, product);
}

class OwnMatmul : public MatmulEngine {
 public:
  OwnMatmul(CudaContext& context, std::string reason) : context_(context), reason_(std::move(reason)) {}

  void matmul(const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b, bool accumulate) override {
    own_matmul(context_, out, a, transpose_a, b, transpose_b, accumulate);
  }
  std::size_t memory() const override { return 0; }
  std::string describe() const override { return "own kernels (no cuBLASLt: " + reason_ + ")"; }

 private:
  CudaContext& context_;
  std::string reason_;
};

std::string size_of(const Tensor& tensor, Transpose transpose) {
  return std::to_string(tensor.rows) + "x" + std::to_string(tensor.columns) + (transpose == Transpose::yes ? "ᵀ" : "");
}

}  // namespace

void check_product(const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b) {
  const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  const std::int64_t m = ta ? a.columns : a.rows, k = ta ? a.rows : a.columns;
  const std::int64_t n = tb ? b.rows : b.columns, inner = tb ? b.columns : b.rows;
  const std::string product = size_of(out, Transpose::no) + " = " + size_of(a, transpose_a) + " · " + size_of(b, transpose_b);
  require(m == out.rows && n == out.columns && k == inner, "the sizes of a product do not fit: " + product);
  require(a.type == b.type && (a.type == DataType::bf16 || out.type == DataType::f32), "the types of a product do not fit: " + product);
  require(std::max({m, n, k}) <= std::numeric_limits<std::int32_t>::max() - 1024, "a product is too large: " + product);
}

void own_matmul(CudaContext& context, const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
                bool accumulate, OwnTile tile) {
  check_product(out, a, transpose_a, b, transpose_b);
  if (out.rows == 0 || out.columns == 0) return;
  const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  if (a.type == DataType::bf16)
    multiply_bf16(context, out, a, ta, b, tb, accumulate, tile);
  else
    multiply_f32(context, out, a, ta, b, tb, accumulate);
}

std::unique_ptr<MatmulEngine> make_own_matmul_engine(CudaContext& context, std::string reason) {
  return std::make_unique<OwnMatmul>(context, std::move(reason));
}

}  // namespace tinyllama::cuda
