#include "native/distributed/open_communicator.h"

#include "native/core/error.h"
#include "native/distributed/fake_communicator.h"
#include "native/distributed/mpi_library.h"
#include "native/distributed/single_communicator.h"
#include "native/distributed/staged_communicator.h"

namespace tinyllama {

std::unique_ptr<Communicator> open_communicator(const CommunicatorOptions& options, Device& device) {
  const auto [kind, rank, size] = options;
  require(size >= 1 && rank >= 0 && rank < size,
          "rank " + std::to_string(rank) + " of " + std::to_string(size) + " is none: RANK must be from 0 to WORLD_SIZE - 1");
  switch (kind) {
    case CommunicatorKind::single:
      require(size == 1, "a world of " + std::to_string(size) + " needs MPI or NCCL between its ranks");
      return make_single_communicator(device);
    case CommunicatorKind::fake:
      return make_fake_communicator(device, rank, size);
    case CommunicatorKind::mpi:
      require(device.in_host_memory(), "MPI joins ranks on CPUs, and this one computes on " + device.name() + ": NCCL joins GPUs");
      return open_mpi(rank, size);
    case CommunicatorKind::host_staged:
      return make_staged_communicator(device, open_mpi(rank, size));
  }
  throw Error("unknown kind of communicator");
}

}  // namespace tinyllama
