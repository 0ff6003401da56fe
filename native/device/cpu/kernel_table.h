// The table of one instruction set's kernels. Included by kernels_*.cpp alone.
#pragma once
#include "native/device/cpu/gemm_kernels.h"
#include "native/device/cpu/row_kernels.h"
#include "native/device/cpu/softmax_kernels.h"

namespace tinyllama {
namespace {

template <class V>
constexpr Kernels kernel_table = {
    .name = V::name,
    .tile_rows = V::tile_rows,
    .tile_columns = V::tile_vectors * V::width,
    .gemm_block = gemm_block<V>,
    .pack_right = pack_right<V>,
    .pack_right_transposed = pack_right_transposed<V>,
    .pack_left_transposed = pack_left_transposed<V>,
    .multiply_add_loop = multiply_add_loop<V>,
    .add = add<V>,
    .squared_norm = squared_norm<V>,
    .adamw = adamw<V>,
    .rms_norm_again = rms_norm_again<V>,
    .rms_norm_forward = rms_norm_forward<V>,
    .rms_norm_backward = rms_norm_backward<V>,
    .rotary = rotary<V>,
    .swiglu_forward = swiglu_forward<V>,
    .swiglu_backward = swiglu_backward<V>,
    .column_maxima = column_maxima<V>,
    .column_exponentials = column_exponentials<V>,
    .add_column_exponentials = add_column_exponentials<V>,
    .softmax_row = softmax_row<V>,
    .softmax_row_backward = softmax_row_backward<V>,
    .scale_row = scale_row<V>,
    .dot = dot<V>,
};

}  // namespace
}  // namespace tinyllama
