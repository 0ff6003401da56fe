#include "native/device/cuda/attention_plain.h"

#include <cmath>

#include "native/device/cuda/attention_plain.cuh"

namespace tinyllama::cuda {
namespace {

template <class T>
PlainArguments<T> plain_arguments(const Tensor& qkv, const AttentionShape& shape, const std::int32_t* first_keys) {
  PlainArguments<T> arguments{};
  arguments.qkv = static_cast<const T*>(qkv.data);
  arguments.qkv_stride = qkv.stride;
  arguments.first_keys = first_keys;
  arguments.batch = static_cast<int>(shape.batch);
  arguments.length = static_cast<int>(shape.length);
  arguments.heads = static_cast<int>(shape.heads);
  arguments.kv_heads = static_cast<int>(shape.kv_heads);
  arguments.size = static_cast<int>(shape.head_size);
  arguments.scale = 1.f / std::sqrt(static_cast<float>(shape.head_size));
  return arguments;
}

dim3 grid(const AttentionShape& shape, std::int64_t heads) {
  return dim3(static_cast<unsigned>((shape.length + plain_tile - 1) / plain_tile), static_cast<unsigned>(heads),
              static_cast<unsigned>(shape.batch));
}

// Shared memory of `tiles` tiles of head vectors and `pairs` tiles of pairs.
std::size_t shared_bytes(CudaContext& context, const AttentionShape& shape, int tiles, int pairs) {
  const auto bytes = static_cast<std::size_t>(plain_tile * (tiles * (static_cast<int>(shape.head_size) + 1) + pairs * plain_pitch)) * sizeof(float);
  require(bytes <= context.properties().sharedMemPerBlockOptin,
          "attention: head size " + std::to_string(shape.head_size) + " needs " + std::to_string(bytes) +
              " bytes of shared memory per block, and this GPU has " + std::to_string(context.properties().sharedMemPerBlockOptin));
  return bytes;
}

template <class T>
void launch(CudaContext& context, void (*kernel)(PlainArguments<T>), dim3 blocks, std::size_t bytes, const PlainArguments<T>& arguments) {
  CHECK_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  kernel<<<blocks, plain_threads, bytes, context.stream()>>>(arguments);
  CHECK_LAUNCH("attention_plain");
}

template <class T, int C>
void forward(CudaContext& context, const PlainArguments<T>& arguments, const AttentionShape& shape) {
  launch<T>(context, attention_forward_plain<T, C>, grid(shape, shape.heads), shared_bytes(context, shape, 3, 1), arguments);
}

template <class T, int C>
void backward(CudaContext& context, const PlainArguments<T>& arguments, const AttentionShape& shape) {
  const std::size_t bytes = shared_bytes(context, shape, 4, 2);
  launch<T>(context, attention_backward_keys_plain<T, C>, grid(shape, shape.kv_heads), bytes, arguments);
  launch<T>(context, attention_backward_queries_plain<T, C>, grid(shape, shape.heads), bytes, arguments);
}

template <class T>
void row_sums(CudaContext& context, const PlainArguments<T>& arguments, const AttentionShape& shape, float* delta) {
  const std::int64_t warps = shape.batch * shape.length * shape.heads, per_block = plain_threads / 32;
  attention_row_sums_plain<T><<<static_cast<unsigned>((warps + per_block - 1) / per_block), plain_threads, 0, context.stream()>>>(arguments,
                                                                                                                              delta);
  CHECK_LAUNCH("attention_row_sums_plain");
}

template <class T>
void forward_of_type(CudaContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                     const std::int32_t* first_keys) {
  PlainArguments<T> arguments = plain_arguments<T>(qkv, shape, first_keys);
  arguments.result = static_cast<T*>(out.data);
  arguments.out_stride = out.stride;
  arguments.lse = lse;
  if (shape.head_size <= 32) return forward<T, 4>(context, arguments, shape);
  if (shape.head_size <= 64) return forward<T, 8>(context, arguments, shape);
  if (shape.head_size <= 128) return forward<T, 16>(context, arguments, shape);
  forward<T, 32>(context, arguments, shape);
}

template <class T>
void backward_of_type(CudaContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out, const float* lse,
                      const AttentionShape& shape, const std::int32_t* first_keys) {
  PlainArguments<T> arguments = plain_arguments<T>(qkv, shape, first_keys);
  auto* delta = static_cast<float*>(context.scratch(static_cast<std::size_t>(shape.batch * shape.heads * shape.length) * sizeof(float)));
  arguments.out = static_cast<const T*>(out.data);
  arguments.out_stride = out.stride;
  arguments.dout = static_cast<const T*>(dout.data);
  arguments.dout_stride = dout.stride;
  arguments.dqkv = static_cast<T*>(dqkv.data);
  arguments.dqkv_stride = dqkv.stride;
  arguments.lse_in = lse;
  arguments.delta = delta;
  row_sums(context, arguments, shape, delta);
  if (shape.head_size <= 32) return backward<T, 4>(context, arguments, shape);
  if (shape.head_size <= 64) return backward<T, 8>(context, arguments, shape);
  if (shape.head_size <= 128) return backward<T, 16>(context, arguments, shape);
  backward<T, 32>(context, arguments, shape);
}

}  // namespace

void attention_plain_forward(CudaContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                             const std::int32_t* first_keys) {
  require(shape.head_size <= 256, "attention: head sizes above 256 are not supported on a GPU");
  const auto run = qkv.type == DataType::f32 ? forward_of_type<float> : forward_of_type<__nv_bfloat16>;
  run(context, out, lse, qkv, shape, first_keys);
}

void attention_plain_backward(CudaContext& context, const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out,
                              const float* lse, const AttentionShape& shape, const std::int32_t* first_keys) {
  require(shape.head_size <= 256, "attention: head sizes above 256 are not supported on a GPU");
  const auto run = qkv.type == DataType::f32 ? backward_of_type<float> : backward_of_type<__nv_bfloat16>;
  run(context, dqkv, dout, qkv, out, lse, shape, first_keys);
}

}  // namespace tinyllama::cuda
