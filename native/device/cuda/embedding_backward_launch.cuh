// The launches of one variant of the embedding's backward pass; the benchmark launches variants too.
#pragma once
#include "native/device/cuda/embedding_backward.cuh"

namespace tinyllama::cuda {

// The pass's scratch memory: the sort's, the counters of arrivals, the shares.
struct ScatterScratch {
  std::size_t sort = 0, arrivals, shares, bytes;
  std::int64_t windows, arrival_count;
  int pieces;

  ScatterScratch(std::int64_t rows, int columns, int window, int piece_columns) {
    const auto up = [](std::size_t value) { return (value + 255) / 256 * 256; };
    windows = (rows + window - 1) / window;
    pieces = (columns + piece_columns - 1) / piece_columns;
    arrival_count = windows * pieces * arrivals_per_window;
    arrivals = up(row_sort_bytes(rows));
    shares = arrivals + up(static_cast<std::size_t>(arrival_count) * sizeof(std::int32_t));
    bytes = shares + static_cast<std::size_t>(windows) * 2 * static_cast<std::size_t>(columns) * sizeof(float);
  }
};

// The sums, after the sort: as soon as multiprocessors are free of it, where it lets them.
template <class T, int width, class Shape>
void launch_sums(CudaContext& context, const Scatter<T>& arguments, const ScatterScratch& layout) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t launch{};
  launch.gridDim = dim3(static_cast<unsigned>(layout.windows * layout.pieces));
  launch.blockDim = dim3(Shape::threads);
  launch.stream = context.stream();
  launch.attrs = &overlap;
  launch.numAttrs = arguments.sorted.may_overlap ? 1 : 0;
  CHECK_CUDA(cudaLaunchKernelEx(&launch, sum_runs<T, width, Shape>, arguments));
}

template <class T, int width, class Shape>
void launch_embedding_backward(CudaContext& context, Scatter<T> arguments, const std::int32_t* ids, std::int64_t id_end) {
  const ScatterScratch layout(arguments.rows, arguments.columns, Shape::window, Shape::threads * width);
  auto* memory = static_cast<std::byte*>(context.scratch(layout.bytes));
  arguments.arrivals = reinterpret_cast<std::int32_t*>(memory + layout.arrivals);
  arguments.shares = reinterpret_cast<float*>(memory + layout.shares);
  arguments.pieces = layout.pieces;
  arguments.sorted = sort_rows(context, ids, arguments.rows, id_end, memory + layout.sort, arguments.arrivals, layout.arrival_count);
  launch_sums<T, width, Shape>(context, arguments, layout);
}

}  // namespace tinyllama::cuda
