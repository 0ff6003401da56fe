// Embedding forward and backward. The kernels are in embedding_kernels.h; here their shapes are chosen.
#include <type_traits>

#include "native/device/cuda/embedding_kernels.h"
#include "native/device/cuda/pointwise.h"

namespace tinyllama::cuda {
namespace {

std::size_t round_up(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

template <class T, int width>
void scatter(CudaContext& context, Scatter<T> arguments, const std::int32_t* ids, std::int64_t id_end) {
  constexpr int threads = 256;
  const unsigned windows = blocks_for(arguments.rows, window);
  const std::size_t sort_bytes = round_up(row_sort_bytes(arguments.rows));
  auto* memory = static_cast<std::byte*>(
      context.scratch(sort_bytes + static_cast<std::size_t>(windows) * 2 * arguments.columns * sizeof(float)));
  arguments.sorted = sort_rows(context, ids, arguments.rows, id_end, memory);
  arguments.shares = reinterpret_cast<float*>(memory + sort_bytes);
  const dim3 grid(windows, blocks_for(arguments.columns, threads * width));
  constexpr int narrow = 128;  // a thread's sums need no other thread: small blocks end sooner and make room for the next
  sum_windows<T, width, narrow, 4, 8><<<dim3(windows, blocks_for(arguments.columns, narrow * width)), narrow, 0, context.stream()>>>(arguments);
  CHECK_LAUNCH("embedding_backward");
  if (windows == 1) return;
  sum_shares<T, width, threads><<<grid, threads, 0, context.stream()>>>(arguments);
  CHECK_LAUNCH("embedding_backward");
  if (windows <= group) return;
  sum_groups<T, width, threads><<<dim3(blocks_for(windows, group) - 1, grid.y), threads, 0, context.stream()>>>(arguments);
  CHECK_LAUNCH("embedding_backward");
}

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
    const Scatter<T> arguments{dtable.f32(),  data_of<T>(dout), nullptr,   {nullptr, nullptr},
                               dtable.stride, dout.stride,      dout.rows, static_cast<int>(dout.columns)};
    if (in_vectors<T>(dout) && in_vectors<float>(dtable)) {  // four columns a thread: 16 bytes of the table, which is most of what moves
      scatter<T, 4>(context, arguments, ids, dtable.rows);
    } else {
      scatter<T, 1>(context, arguments, ids, dtable.rows);
    }
  });
}

}  // namespace tinyllama::cuda
