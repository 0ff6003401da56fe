#include "native/device/cuda/linear_loss.h"

#include <algorithm>

#include "native/device/cuda/linear_loss_rows.cuh"
#include "native/device/cuda/scratch_sizes.h"

namespace tinyllama::cuda {
namespace {

Tensor rows_of(const Tensor& tensor, std::int64_t first, std::int64_t count) {
  const std::int64_t element = tensor.type == DataType::f32 ? 4 : 2;
  return {static_cast<char*>(tensor.data) + first * tensor.stride * element, tensor.type, count, tensor.columns, tensor.stride};
}

template <class Element, int threads, int vectors, int blocks>
void in_registers(cudaStream_t stream, const LossRows& rows, std::int64_t count) {
  loss_in_registers<Element, threads, vectors, blocks><<<static_cast<unsigned>(count), threads, 0, stream>>>(rows);
}

// The smallest block whose registers hold a row.
template <class Element>
void loss_of_rows(cudaStream_t stream, const LossRows& rows, std::int64_t count) {
  const std::int64_t vectors = (rows.vocabulary + RowVector<Element>::width - 1) / RowVector<Element>::width;
  if (vectors <= 128)
    in_registers<Element, 128, 1, 8>(stream, rows, count);
  else if (vectors <= 512)
    in_registers<Element, 256, 2, 4>(stream, rows, count);
  else if (vectors <= 2048)
    in_registers<Element, 512, 4, 2>(stream, rows, count);
  else if (vectors <= 4096)
    in_registers<Element, 512, 8, 2>(stream, rows, count);
  else if (vectors <= 8192)
    in_registers<Element, 1024, 8, 1>(stream, rows, count);
  else
    loss_in_passes<Element><<<static_cast<unsigned>(count), 1024, 0, stream>>>(rows);
  CHECK_LAUNCH("loss of rows");
}

}  // namespace

void linear_cross_entropy(CudaContext& context, MatmulEngine& engine, float* losses, const Tensor& dhidden, const Tensor& dweight,
                          const Tensor& hidden, const Tensor& weight, const std::int32_t* targets, const float* scale) {
  const LossChunks chunks(hidden.rows, weight.rows, hidden.type);
  if (hidden.rows == 0) return;
  void* const memory = context.scratch(chunks.bytes);
  for (std::int64_t first = 0; first < hidden.rows; first += chunks.rows) {
    const std::int64_t count = std::min(chunks.rows, hidden.rows - first);
    const Tensor logits{memory, hidden.type, count, weight.rows, chunks.stride}, inputs = rows_of(hidden, first, count);
    engine.matmul(logits, inputs, Transpose::no, weight, Transpose::yes, false);
    const LossRows rows{memory, chunks.stride, static_cast<std::int32_t>(weight.rows), losses + first, targets + first, scale};
    if (hidden.type == DataType::f32)
      loss_of_rows<float>(context.stream(), rows, count);
    else
      loss_of_rows<__nv_bfloat16>(context.stream(), rows, count);
    // The logits are now their gradient.
    engine.matmul(rows_of(dhidden, first, count), logits, Transpose::no, weight, Transpose::no, false);
    engine.matmul(dweight, logits, Transpose::yes, inputs, Transpose::no, true);
  }
}

void linear_log_probability(CudaContext& context, MatmulEngine& engine, float* log_probabilities, std::uint8_t* greedy, const Tensor& hidden,
                            const Tensor& weight, const std::int32_t* targets) {
  const LossChunks chunks(hidden.rows, weight.rows, DataType::f32);
  if (hidden.rows == 0) return;
  float* const memory = static_cast<float*>(context.scratch(chunks.bytes));
  for (std::int64_t first = 0; first < hidden.rows; first += chunks.rows) {
    const std::int64_t count = std::min(chunks.rows, hidden.rows - first);
    const Tensor logits{memory, DataType::f32, count, weight.rows, chunks.stride};
    engine.matmul(logits, rows_of(hidden, first, count), Transpose::no, weight, Transpose::yes, false);
    log_probability_rows<float><<<static_cast<unsigned>(count), 512, 0, context.stream()>>>(
        memory, chunks.stride, static_cast<std::int32_t>(weight.rows), log_probabilities + first, greedy + first, targets + first);
    CHECK_LAUNCH("log_probability_rows");
  }
}

}  // namespace tinyllama::cuda
