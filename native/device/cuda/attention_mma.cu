#include "native/device/cuda/attention_mma.h"

#include "native/device/cuda/attention_mma_launch.cuh"

namespace tinyllama::cuda {
namespace {

bool aligned(const Tensor& tensor) { return reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && tensor.stride % 8 == 0; }

}  // namespace

bool attention_mma_supports(const Tensor& qkv, const Tensor& out, const AttentionShape& shape) {
  return qkv.type == DataType::bf16 && out.type == DataType::bf16 && (shape.head_size == 64 || shape.head_size == 128) && aligned(qkv) &&
         aligned(out);
}

void attention_mma_forward(CudaContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                           const std::int32_t* first_keys) {
  const ForwardArguments arguments = forward_arguments(out, lse, qkv, shape, first_keys);
  if (shape.head_size == 64)
    launch_forward_mma<64, 4, 2, 64, 3, 2>(context, arguments, shape);
  else
    launch_forward_mma<128, 4, 1, 64, 2, 2>(context, arguments, shape);
}

void attention_mma_backward(CudaContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out,
                            const float* lse, const AttentionShape& shape, const std::int32_t* first_keys) {
  const BackwardOperands operands{dqkv, dout, qkv, out, lse, shape, first_keys};
  if (shape.head_size == 64)
    launch_backward_mma<64, 4, 2, 64, 32, 2>(context, operands, all_groups);
  else if (BackwardLayout<128, 8, 1, 64>::bytes <= context.properties().sharedMemPerBlockOptin)
    launch_backward_mma<128, 8, 1, 64, 32, 1>(context, operands, all_groups);
  else
    attention_mma_backward_128_small(context, operands.dqkv, operands.dout, operands.qkv, operands.out, lse, shape, first_keys);
}

void attention_mma_backward_128_small(CudaContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out,
                                      const float* lse, const AttentionShape& shape, const std::int32_t* first_keys) {
  launch_backward_mma<128, 4, 1, 32, 32, 1>(context, BackwardOperands{dqkv, dout, qkv, out, lse, shape, first_keys}, all_groups);
}

}  // namespace tinyllama::cuda
