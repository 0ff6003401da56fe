// The part of NCCL that the engine calls, declared here so that a machine without the library's header compiles it: the library is found at run time.
// Names and numbers are those of nccl.h from 2.18 on; nccl_declarations_check.cpp compares them with the real header where that is installed.
#pragma once
#include <climits>
#include <cstddef>

struct CUstream_st;  // what a cudaStream_t points to
struct ncclComm;

namespace tinyllama::nccl {

using Handle = ncclComm*;
using Stream = CUstream_st*;

// ncclResult_t
using Status = int;
inline constexpr Status status_success = 0;
inline constexpr Status status_in_progress = 7;
// ncclDataType_t, ncclRedOp_t
inline constexpr int data_uint8 = 1;
inline constexpr int data_f32 = 7;
inline constexpr int operation_sum = 0;

// ncclUniqueId
struct UniqueId {
  char bytes[128];
};

// ncclConfig_t as of 2.18. Later versions have more fields after these, and take those that `size` leaves out as undefined.
struct Config {
  std::size_t size = sizeof(Config);
  unsigned int magic = 0xcafebeef;
  unsigned int version = 21800;
  int blocking = INT_MIN;  // INT_MIN, null: undefined, NCCL's own choice
  int cluster_size = INT_MIN;
  int least_blocks = INT_MIN;
  int most_blocks = INT_MIN;
  const char* network = nullptr;
  int split_shares = INT_MIN;
};
inline constexpr int oldest_version = 21800;

// The entry points, as the library's symbols are called.
struct Functions {
  Status (*ncclGetVersion)(int* version);
  Status (*ncclGetUniqueId)(UniqueId* id);
  Status (*ncclCommInitRankConfig)(Handle* handle, int ranks, UniqueId id, int rank, Config* config);
  Status (*ncclCommSplit)(Handle handle, int colour, int key, Handle* part, Config* config);
  Status (*ncclCommFinalize)(Handle handle);
  Status (*ncclCommDestroy)(Handle handle);
  Status (*ncclCommAbort)(Handle handle);
  Status (*ncclCommGetAsyncError)(Handle handle, Status* error);
  const char* (*ncclGetErrorString)(Status status);
  const char* (*ncclGetLastError)(Handle handle);
  Status (*ncclAllGather)(const void* in, void* out, std::size_t count, int data, Handle handle, Stream stream);
  Status (*ncclReduceScatter)(const void* in, void* out, std::size_t count, int data, int operation, Handle handle, Stream stream);
  Status (*ncclAllReduce)(const void* in, void* out, std::size_t count, int data, int operation, Handle handle, Stream stream);
  Status (*ncclSend)(const void* in, std::size_t count, int data, int peer, Handle handle, Stream stream);
  Status (*ncclRecv)(void* out, std::size_t count, int data, int peer, Handle handle, Stream stream);
  Status (*ncclGroupStart)();
  Status (*ncclGroupEnd)();
};

}  // namespace tinyllama::nccl
