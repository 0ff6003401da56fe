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
  bool may_overlap = false;  // the sort lets a kernel that is launched with launch_overlapping start before it has ended
};

// Bytes of device memory that sorting `count` rows needs.
std::size_t row_sort_bytes(std::int64_t count);

// Ascending by id, rows of one id in ascending order. ids lie in [0, id_end). `memory` holds the result too. On the way `zero_count` words at `zeros`
// are set to zero: counters of the kernels to come.
SortedRows sort_rows(CudaContext& context, const std::int32_t* ids, std::int64_t count, std::int64_t id_end, void* memory,
                     std::int32_t* zeros = nullptr, std::int64_t zero_count = 0);

// The same, always by several launches, as where one cluster of blocks cannot hold the rows or the GPU has none.
SortedRows sort_rows_by_tiles(CudaContext& context, const std::int32_t* ids, std::int64_t count, std::int64_t id_end, void* memory,
                              std::int32_t* zeros = nullptr, std::int64_t zero_count = 0);

}  // namespace tinyllama::cuda
