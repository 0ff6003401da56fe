// Embedding forward and backward. The kernels are in embedding_kernels.h and embedding_backward.cuh; here their shapes are chosen.
#include <type_traits>

#include "native/device/cuda/embedding_backward_launch.cuh"
#include "native/device/cuda/embedding_kernels.h"
#include "native/device/cuda/pointwise.h"

namespace tinyllama::cuda {
namespace {

// 128 threads: their sums need no others, and small blocks end sooner and make room for the next. The fastest of those that were measured.
using DefaultSums = SumShape<128, 16, 4, 8>;

}  // namespace

void embedding_forward(CudaContext& context, const Tensor& out, const Tensor& table, const std::int32_t* ids) {
  require_one_type("embedding_forward", out, table);
  if (out.rows == 0) return;
  with_type(out.type, [&](auto type) {
    using T = decltype(type);
    auto launch = [&](auto width) {
      gather<T, width()><<<blocks_for(out.rows, 8), 256, 0, context.stream()>>>(data_of<T>(out), out.stride, data_of<T>(table), table.stride, ids,
                                                                               out.rows, static_cast<int>(out.columns) / width());
      CHECK_LAUNCH("embedding_forward");
    };
    if (in_vectors<T>(out) && in_vectors<T>(table)) {
      launch(std::integral_constant<int, full_width<T>>{});
    } else {
      launch(std::integral_constant<int, 1>{});
    }
  });
}

void embedding_backward(CudaContext& context, const Tensor& dtable, const Tensor& dout, const std::int32_t* ids) {
  require(dtable.type == DataType::f32, "embedding_backward: the table's gradient must be f32");
  if (dout.rows == 0) return;
  with_type(dout.type, [&](auto type) {
    using T = decltype(type);
    const Scatter<T> arguments{.dtable = dtable.f32(),
                               .dout = data_of<T>(dout),
                               .dtable_stride = dtable.stride,
                               .dout_stride = dout.stride,
                               .rows = dout.rows,
                               .columns = static_cast<int>(dout.columns)};
    if (in_vectors<T>(dout) && in_vectors<float>(dtable)) {  // four columns a thread: 16 bytes of the table, which is most of what moves
      launch_embedding_backward<T, 4, DefaultSums>(context, arguments, ids, dtable.rows);
    } else {
      launch_embedding_backward<T, 1, DefaultSums>(context, arguments, ids, dtable.rows);
    }
  });
}

}  // namespace tinyllama::cuda
