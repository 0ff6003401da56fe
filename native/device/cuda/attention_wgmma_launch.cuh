// Launches of one variant of the warp-group kernels each; the benchmark launches variants too.
#pragma once
#include <cudaTypedefs.h>

#include "native/device/cuda/attention_backward_wgmma.cuh"
#include "native/device/cuda/attention_forward_wgmma.cuh"
#include "native/device/cuda/attention_mma_launch.cuh"

namespace tinyllama::cuda {

// The driver's function, found at run time: the engine is not linked against the driver.
inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    CHECK_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    require(found == cudaDriverEntryPointSuccess && function != nullptr, "CUDA: the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

// How the copy engine sees packed rows: boxes of `rows` rows of one sequence and 64 columns, swizzled; what is outside reads as zeros.
inline CUtensorMap panel_map(const Tensor& matrix, const AttentionShape& shape, int rows) {
  CUtensorMap map;
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(matrix.columns), static_cast<cuuint64_t>(shape.length), static_cast<cuuint64_t>(shape.batch)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(matrix.stride) * 2, static_cast<cuuint64_t>(shape.length * matrix.stride) * 2};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(rows), 1}, steps[3] = {1, 1, 1};
  const CUresult status =
      tensor_map_encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, matrix.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                           CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(status == CUDA_SUCCESS, "CUDA: cuTensorMapEncodeTiled failed with status " + std::to_string(static_cast<int>(status)));
  return map;
}

template <int S, int GROUPS, int KT, int STAGES, int BLOCKS, bool COPIER, bool OVERLAP, bool TURNS>
void launch_forward_wgmma(CudaContext& context, const Tensor& out, float* lse, const Tensor& qkv, const AttentionShape& shape,
                          const std::int32_t* first_keys) {
  using Layout = GroupForwardLayout<S, GROUPS, KT, STAGES, COPIER>;
  const auto kernel = attention_forward_wgmma<S, GROUPS, KT, STAGES, BLOCKS, COPIER, OVERLAP, TURNS>;
  allow_shared_memory(kernel, Layout::bytes);
  const std::int64_t tiles = (shape.length + Layout::query_rows - 1) / Layout::query_rows, items = shape.batch * shape.heads * tiles;
  const std::int64_t resident = context.multiprocessors(), blocks = COPIER && items > resident ? resident : items;
  const GroupForwardArguments arguments{forward_arguments(out, lse, qkv, shape, first_keys), static_cast<int>(shape.batch), static_cast<int>(tiles)};
  kernel<<<static_cast<unsigned>(blocks), Layout::threads, Layout::bytes, context.stream()>>>(arguments, panel_map(qkv, shape, Layout::query_rows),
                                                                                            panel_map(qkv, shape, KT));
  CHECK_LAUNCH("attention_forward_wgmma");
}

// Head size 64. wave: how many groups' key tiles are started together.
template <int STAGES, int SUMMERS>
void launch_backward_wgmma(CudaContext& context, const BackwardOperands& operands, int wave = all_groups) {
  using Layout = GroupBackwardLayout<STAGES, SUMMERS>;
  constexpr int S = GroupBackward::S, QT = GroupBackward::QT, KT = GroupBackward::KT;
  const auto kernel = attention_backward_wgmma<STAGES, SUMMERS>;
  allow_shared_memory(kernel, Layout::bytes);
  const AttentionShape& shape = operands.shape;
  const BackwardScratch layout(shape, QT, S, GroupBackward::turns_per_tile);
  auto* scratch = static_cast<std::byte*>(context.scratch(layout.bytes));
  prepare_backward<S, QT, QT>(context, scratch, layout, operands);
  const std::int64_t key_tiles = (shape.length + KT - 1) / KT, groups = shape.batch * shape.kv_heads;
  wave = static_cast<int>(wave > groups ? groups : wave);
  kernel<<<static_cast<unsigned>(groups * key_tiles), Layout::threads, Layout::bytes, context.stream()>>>(
      backward_arguments(scratch, layout, operands, wave), panel_map(operands.qkv, shape, KT), panel_map(operands.qkv, shape, QT),
      panel_map(operands.dout, shape, QT));
  CHECK_LAUNCH("attention_backward_wgmma");
}

}  // namespace tinyllama::cuda
