// Matrix products without any library: the fallback where cuBLASLt is not found, and the oracle of its tests.
// Deterministic: an output element is one sum over K in ascending order, whatever the tile.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "native/device/cuda/matmul.h"

namespace tinyllama::cuda {

// The block's share of a bf16 product: M x N x K, and how many copies of it are in flight. f32 products have one kernel.
enum class OwnTile : std::uint8_t { automatic, m128_n128_k32, m128_n256_k32, m128_n256_k64 };

// `tile` other than automatic is for measurements. Throws Error where the GPU has too little shared memory for it.
void own_matmul(CudaContext& context, const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
                bool accumulate, OwnTile tile = OwnTile::automatic);

// `reason`: why not cuBLASLt, for describe().
std::unique_ptr<MatmulEngine> make_own_matmul_engine(CudaContext& context, std::string reason);

}  // namespace tinyllama::cuda
