// Our declarations of NCCL against the real header, where it is installed: a difference stops the build. Elsewhere this file is empty.
#if __has_include(<nccl.h>) && __has_include(<cuda_runtime.h>)
#include <nccl.h>

#include <cstddef>

#include "native/device/cuda/nccl_declarations.h"
#include "native/device/cuda/same_signature.h"

// The id goes as its bytes.
template <>
struct tinyllama::Passed<ncclUniqueId> {
  using type = tinyllama::nccl::UniqueId;
};

namespace tinyllama::nccl {

static_assert(status_success == ncclSuccess && status_in_progress == ncclInProgress);
static_assert(data_uint8 == ncclUint8 && data_f32 == ncclFloat32 && operation_sum == ncclSum);
static_assert(oldest_version == NCCL_VERSION(2, 18, 0));
static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId) && alignof(UniqueId) == alignof(ncclUniqueId));
static_assert(sizeof(Config) <= sizeof(ncclConfig_t));
static_assert(offsetof(Config, magic) == offsetof(ncclConfig_t, magic) && Config{}.magic == NCCL_API_MAGIC);
static_assert(offsetof(Config, version) == offsetof(ncclConfig_t, version));
static_assert(offsetof(Config, blocking) == offsetof(ncclConfig_t, blocking) && Config{}.blocking == NCCL_CONFIG_UNDEF_INT);
static_assert(offsetof(Config, cluster_size) == offsetof(ncclConfig_t, cgaClusterSize));
static_assert(offsetof(Config, least_blocks) == offsetof(ncclConfig_t, minCTAs) && offsetof(Config, most_blocks) == offsetof(ncclConfig_t, maxCTAs));
static_assert(offsetof(Config, network) == offsetof(ncclConfig_t, netName) && offsetof(Config, split_shares) == offsetof(ncclConfig_t, splitShare));

#define AGREES(function) static_assert(same_signature<decltype(Functions::function), decltype(&::function)>, #function)
AGREES(ncclGetVersion);
AGREES(ncclGetUniqueId);
AGREES(ncclCommInitRankConfig);
AGREES(ncclCommSplit);
AGREES(ncclCommFinalize);
AGREES(ncclCommDestroy);
AGREES(ncclCommAbort);
AGREES(ncclCommGetAsyncError);
AGREES(ncclGetErrorString);
AGREES(ncclGetLastError);
AGREES(ncclAllGather);
AGREES(ncclReduceScatter);
AGREES(ncclAllReduce);
AGREES(ncclSend);
AGREES(ncclRecv);
AGREES(ncclGroupStart);
AGREES(ncclGroupEnd);
#undef AGREES

}  // namespace tinyllama::nccl
#endif
