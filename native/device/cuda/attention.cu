#include "native/device/cuda/attention.h"

#include "native/device/cuda/attention_mma.h"
#include "native/device/cuda/attention_plain.h"
#include "native/device/cuda/attention_wgmma.h"

namespace tinyllama::cuda {
namespace {

void check(const Tensor& qkv, const Tensor& out, const AttentionShape& shape) {
  require(shape.kv_heads >= 1 && shape.heads % shape.kv_heads == 0, "attention: the query heads must be a multiple of the key/value heads");
  require(qkv.rows == shape.batch * shape.length && qkv.columns == (shape.heads + 2 * shape.kv_heads) * shape.head_size &&
              out.rows == qkv.rows && out.columns == shape.heads * shape.head_size,
          "attention: the matrices do not have the shape's sizes");
  require(qkv.type == out.type, "attention: the matrices must have one type");
}

}  // namespace

void attention_forward(CudaContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                       const std::int32_t* first_keys) {
  check(qkv, out, shape);
  if (qkv.rows == 0) return;
  auto* run = attention_plain_forward;
  if (attention_mma_supports(qkv, out, shape)) run = attention_wgmma_available(context) ? attention_wgmma_forward : attention_mma_forward;
  run(context, out, lse, qkv, shape, first_keys);
}

void attention_backward(CudaContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out, const float* lse,
                        const AttentionShape& shape, const std::int32_t* first_keys) {
  check(qkv, out, shape);
  check(dqkv, dout, shape);
  if (qkv.rows == 0) return;
  auto* run = attention_plain_backward;
  if (attention_mma_supports(qkv, out, shape) && attention_mma_supports(dqkv, dout, shape))
    run = shape.head_size == 64 && attention_wgmma_available(context) ? attention_wgmma_backward : attention_mma_backward;
  run(context, dqkv, dout, qkv, out, lse, shape, first_keys);
}

}  // namespace tinyllama::cuda
