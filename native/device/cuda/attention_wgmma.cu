#include "native/device/cuda/attention_wgmma.h"

#include "native/device/cuda/attention_wgmma_launch.cuh"

namespace tinyllama::cuda {

bool attention_wgmma_available(const CudaContext& context) {
  if (context.properties().major != 9 || context.properties().minor != 0) return false;
  // Where the build has no code for sm_90a, the kernel is an empty shell, told by its few registers.
  static const bool compiled = [] {
    cudaFuncAttributes attributes{};
    CHECK_CUDA(cudaFuncGetAttributes(&attributes, attention_forward_wgmma<64, 3, 128, 2, 1, true, true, true>));
    return attributes.numRegs >= 64;
  }();
  return compiled;
}

void attention_wgmma_forward(CudaContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                             const std::int32_t* first_keys) {
  if (shape.head_size == 64)
    launch_forward_wgmma<64, 3, 128, 2, 1, true, true, true>(context, out, lse, qkv, shape, first_keys);
  else
    launch_forward_wgmma<128, 2, 128, 2, 1, true, true, true>(context, out, lse, qkv, shape, first_keys);
}

void attention_wgmma_backward(CudaContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out,
                              const float* lse, const AttentionShape& shape, const std::int32_t* first_keys) {
  require(shape.head_size == 64, "attention: the warp-group backward is for head size 64");
  launch_backward_wgmma<3, 2>(context, BackwardOperands{dqkv, dout, qkv, out, lse, shape, first_keys});
}

}  // namespace tinyllama::cuda
