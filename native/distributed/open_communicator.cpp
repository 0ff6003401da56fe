#include "native/distributed/open_communicator.h"

#include <algorithm>
#include <array>
#include <random>
#include <utility>
#include <vector>

#include "native/core/error.h"
#include "native/device/cuda/library.h"
#include "native/device/open_device.h"
#include "native/distributed/fake_communicator.h"
#include "native/distributed/mpi_library.h"
#include "native/distributed/rendezvous.h"
#include "native/distributed/single_communicator.h"
#include "native/distributed/staged_communicator.h"

namespace tinyllama {

namespace {

// NCCL joins those who know the id that rank 0 makes; they learn it at the rendezvous, where they also see whether they agree.
std::unique_ptr<Communicator> open_nccl(const CommunicatorOptions& options, Device& device) {
  require(!device.in_host_memory(), "NCCL joins ranks on GPUs, and this one computes on " + device.name() + ": MPI joins CPUs");
  const CudaLibrary& library = cuda_library();
  char error[1024] = "";
  NcclOptions joined{.rank = options.rank, .size = options.size, .timeout = options.start_timeout};
  const bool made = options.rank > 0 || library.make_nccl_id(joined.id, error, sizeof(error));
  require(made, error);
  // Alone it has no one to meet.
  const std::string id = options.size == 1 ? std::string(joined.id.bytes, sizeof(joined.id.bytes))
                                           : rendezvous({.rank = options.rank,
                                     .size = options.size,
                                     .address = options.master_addr,
                                     .port = options.master_port,
                                     .nonce = options.nonce,
                                     .agreement = options.agreement,
                                     .timeout = options.start_timeout},
                                    {joined.id.bytes, sizeof(joined.id.bytes)});
  require(id.size() == sizeof(joined.id.bytes), "rank 0 handed out no id of NCCL");
  std::copy(id.begin(), id.end(), joined.id.bytes);
  std::unique_ptr<Communicator> ranks(library.open_nccl(device, joined, error, sizeof(error)));
  require(ranks != nullptr, error);
  return ranks;
}

std::unique_ptr<Communicator> open_backend(const CommunicatorOptions& options, Device& device) {
  const int rank = options.rank, size = options.size;
  switch (options.kind) {
    case CommunicatorKind::single:
      require(size == 1, "a world of " + std::to_string(size) + " needs MPI or NCCL between its ranks");
      return make_single_communicator(device);
    case CommunicatorKind::fake:
      return make_fake_communicator(device, rank, size);
    case CommunicatorKind::nccl:
      return open_nccl(options, device);
    case CommunicatorKind::mpi:
      require(device.in_host_memory(), "MPI joins ranks on CPUs, and this one computes on " + device.name() + ": NCCL joins GPUs");
      return open_mpi(rank, size);
    case CommunicatorKind::host_staged:
      return make_staged_communicator(device, open_mpi(rank, size));
  }
  throw Error("unknown kind of communicator");
}

// A number of rank 0's, on all ranks: two starts of one run never share it.
std::string draw_nonce(Communicator& ranks) {
  std::random_device random;
  const std::array<std::uint32_t, 4> own = {random(), random(), random(), random()};
  std::vector<std::array<std::uint32_t, 4>> all(static_cast<std::size_t>(ranks.size()));
  ranks.exchange(all.data(), own.data(), sizeof(own));
  std::string text;
  for (const std::uint32_t word : all[0]) text += std::to_string(word) + ".";
  return text;
}

}  // namespace

std::unique_ptr<Communicator> open_communicator(const CommunicatorOptions& options, Device& device) {
  require(options.size >= 1 && options.rank >= 0 && options.rank < options.size,
          "there is no rank " + std::to_string(options.rank) + " of " + std::to_string(options.size) + ": RANK must be from 0 to WORLD_SIZE - 1");
  if (options.kind == CommunicatorKind::single || options.kind == CommunicatorKind::fake) return open_backend(options, device);
  try {
    std::unique_ptr<Communicator> ranks = open_backend(options, device);
    if (!options.log_folder.empty()) {
      const std::string nonce = draw_nonce(*ranks);
      ranks = watch(std::move(ranks), {options.log_folder, nonce, options.collective_timeout});
    }
    check_agreement(*ranks, options.agreement);
    return ranks;
  } catch (const Error& error) {
    // Mostly a user's mistake, and never the engine's own: callers tell it from others by this.
    throw Error(std::string("the ranks cannot begin: ") + error.what());
  }
}

}  // namespace tinyllama
