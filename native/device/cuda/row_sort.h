// A stable sort of rows by their token id, on the device.
#pragma once
#include <cstddef>
#include <cstdint>

#include "native/device/cuda/cuda_context.h"

namespace tinyllama::cuda {

// Where a sort left its result: position p of the sorted order is row rows[p], whose id is ids[p].
struct SortedRows {
  const std::int32_t* ids;
  const std::int32_t* rows;
};

// Bytes of device memory that sorting `count` rows needs.
std::size_t row_sort_bytes(std::int64_t count);

// Ascending by id, rows of one id in ascending order. ids lie in [0, id_end). `memory` holds the result too.
SortedRows sort_rows(CudaContext& context, const std::int32_t* ids, std::int64_t count, std::int64_t id_end, void* memory);

}  // namespace tinyllama::cuda
