// Matrix products: by cuBLASLt where it is found, else by kernels of our own.
#pragma once
#include <memory>
#include <string>

#include "native/core/tensor.h"
#include "native/device/cuda/cuda_context.h"
#include "native/device/device.h"

namespace tinyllama::cuda {

// Device::matmul. a and b are both f32 (full fp32 products, no TF32) or both bf16 (fp32 accumulation); out is f32 or bf16.
class MatmulEngine {
 public:
  virtual ~MatmulEngine() = default;
  virtual void matmul(const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b,
                      bool accumulate) = 0;
  // "cuBLASLt 13.0.2 (/usr/lib/…), plans in …" or "own kernels (no cuBLASLt: …)", and what the user should know of the choice of plans.
  virtual std::string describe() const = 0;
  // Bytes of device memory that it holds.
  virtual std::size_t memory() const = 0;
};

// Throws Error where the shapes of a product do not fit each other.
void check_product(const Tensor& out, const Tensor& a, Transpose transpose_a, const Tensor& b, Transpose transpose_b);

// TINYLLAMA_CUBLASLT names the library file, or "none" for our own kernels (cublaslt_library.h tells where else it is looked for).
std::unique_ptr<MatmulEngine> make_matmul_engine(CudaContext& context);

}  // namespace tinyllama::cuda
