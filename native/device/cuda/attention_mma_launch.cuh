// Launches of one variant of the tensor core kernels each; the benchmark launches variants too.
#pragma once
#include <cmath>
#include <cstddef>
#include <limits>

#include "native/device/cuda/attention_backward_mma.cuh"
#include "native/device/cuda/cuda_context.h"
#include "native/device/cuda/scratch_sizes.h"
#include "native/device/device.h"

namespace tinyllama::cuda {

inline const __nv_bfloat16* bf16_data(const Tensor& tensor) { return static_cast<const __nv_bfloat16*>(tensor.data); }

template <class Kernel>
void allow_shared_memory(Kernel* kernel, int bytes) {
  CHECK_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

inline ForwardArguments forward_arguments(const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                                          const std::int32_t* first_keys) {
  return {.qkv = bf16_data(qkv),
          .out = static_cast<__nv_bfloat16*>(out.data),
          .lse = lse,
          .first_keys = first_keys,
          .qkv_stride = static_cast<int>(qkv.stride),
          .out_stride = static_cast<int>(out.stride),
          .length = static_cast<int>(shape.length),
          .heads = static_cast<int>(shape.heads),
          .kv_heads = static_cast<int>(shape.kv_heads),
          .scale = 1.f / std::sqrt(static_cast<float>(shape.head_size))};
}

template <int S, int WARPS, int MT, int KT, int STAGES, int BLOCKS>
void launch_forward_mma(CudaContext& context, const ForwardArguments& arguments, const AttentionShape& shape) {
  using Layout = ForwardLayout<S, WARPS, MT, KT, STAGES>;
  const auto kernel = attention_forward_mma<S, WARPS, MT, KT, STAGES, BLOCKS>;
  allow_shared_memory(kernel, Layout::bytes);
  const auto tiles = static_cast<unsigned>((shape.length + Layout::query_rows - 1) / Layout::query_rows);
  kernel<<<dim3(static_cast<unsigned>(shape.batch * shape.heads), tiles), WARPS * 32, Layout::bytes, context.stream()>>>(arguments);
  CHECK_LAUNCH("attention_forward_mma");
}

struct BackwardOperands {
  Tensor dqkv, dout, qkv, out;
  const float* lse;
  AttentionShape shape;
  const std::int32_t* first_keys;
};

// Row sums, first keys of the query tiles and zeroed turns. TILE: how the statistics are laid out.
template <int S, int QT, int TILE = 0>
void prepare_backward(CudaContext& context, std::byte* scratch, const BackwardScratch& layout, const BackwardOperands& operands) {
  const AttentionShape& shape = operands.shape;
  CHECK_CUDA(cudaMemsetAsync(scratch + layout.turns, 0, layout.turns_bytes, context.stream()));
  const RowArguments rows{.out = bf16_data(operands.out),
                          .dout = bf16_data(operands.dout),
                          .lse = operands.lse,
                          .statistics = reinterpret_cast<float*>(scratch + layout.statistics),
                          .out_stride = static_cast<int>(operands.out.stride),
                          .dout_stride = static_cast<int>(operands.dout.stride),
                          .batch = static_cast<int>(shape.batch),
                          .length = static_cast<int>(shape.length),
                          .heads = static_cast<int>(shape.heads)};
  const std::int64_t threads = shape.batch * padded_length<TILE>(static_cast<int>(shape.length)) * shape.heads * (S / 8);
  attention_backward_rows<S, TILE><<<static_cast<unsigned>((threads + 255) / 256), 256, 0, context.stream()>>>(rows);
  CHECK_LAUNCH("attention_backward_rows");
  if (operands.first_keys == nullptr) return;
  const dim3 tiles(static_cast<unsigned>((shape.length + QT - 1) / QT), static_cast<unsigned>(shape.batch));
  attention_first_key_bounds<QT><<<tiles, 32, 0, context.stream()>>>(reinterpret_cast<int2*>(scratch + layout.bounds), operands.first_keys,
                                                                     static_cast<int>(shape.length));
  CHECK_LAUNCH("attention_first_key_bounds");
}

inline BackwardArguments backward_arguments(std::byte* scratch, const BackwardScratch& layout, const BackwardOperands& operands, int wave) {
  const AttentionShape& shape = operands.shape;
  return {.qkv = bf16_data(operands.qkv),
          .dout = bf16_data(operands.dout),
          .dqkv = static_cast<__nv_bfloat16*>(operands.dqkv.data),
          .statistics = reinterpret_cast<const float*>(scratch + layout.statistics),
          .first_keys = operands.first_keys,
          .first_key_bounds = operands.first_keys == nullptr ? nullptr : reinterpret_cast<const int2*>(scratch + layout.bounds),
          .dq_sums = reinterpret_cast<float*>(scratch + layout.dq_sums),
          .turns = reinterpret_cast<int*>(scratch + layout.turns),
          .qkv_stride = static_cast<int>(operands.qkv.stride),
          .dout_stride = static_cast<int>(operands.dout.stride),
          .dqkv_stride = static_cast<int>(operands.dqkv.stride),
          .batch = static_cast<int>(shape.batch),
          .length = static_cast<int>(shape.length),
          .heads = static_cast<int>(shape.heads),
          .kv_heads = static_cast<int>(shape.kv_heads),
          .wave = wave,
          .scale = 1.f / std::sqrt(static_cast<float>(shape.head_size))};
}

// wave: how many groups' key tiles are started together; 0: as many as fill the GPU.
constexpr int all_groups = std::numeric_limits<int>::max();
template <int S, int WARPS, int MT, int QT, int QC, int BLOCKS>
void launch_backward_mma(CudaContext& context, const BackwardOperands& operands, int wave = 0) {
  using Layout = BackwardLayout<S, WARPS, MT, QT>;
  const auto kernel = attention_backward_mma<S, WARPS, MT, QT, QC, BLOCKS>;
  allow_shared_memory(kernel, Layout::bytes);
  const AttentionShape& shape = operands.shape;
  const BackwardScratch layout(shape, QT, S, WARPS);
  auto* scratch = static_cast<std::byte*>(context.scratch(layout.bytes));
  prepare_backward<S, QT>(context, scratch, layout, operands);
  const std::int64_t key_tiles = (shape.length + Layout::key_rows - 1) / Layout::key_rows, groups = shape.batch * shape.kv_heads;
  if (wave == 0) wave = static_cast<int>((context.multiprocessors() * BLOCKS + key_tiles - 1) / key_tiles);
  wave = static_cast<int>(wave > groups ? groups : wave);
  kernel<<<static_cast<unsigned>(groups * key_tiles), WARPS * 32, Layout::bytes, context.stream()>>>(
      backward_arguments(scratch, layout, operands, wave));
  CHECK_LAUNCH("attention_backward_mma");
}

}  // namespace tinyllama::cuda
