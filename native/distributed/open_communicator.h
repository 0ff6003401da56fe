// Which communicator joins the ranks: none for a world of 1, MPI between CPUs, NCCL between GPUs, MPI with staging where several ranks share a GPU.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "native/device/device.h"
#include "native/distributed/agreement.h"
#include "native/distributed/communicator.h"
#include "native/distributed/watched_communicator.h"

namespace tinyllama {

enum class CommunicatorKind : std::uint8_t {
  single,       // a world of 1
  nccl,         // between GPUs, each rank's its own
  mpi,          // of devices in host memory
  host_staged,  // MPI between ranks that may share a GPU: for correctness only
  fake,         // rank r of W alone: memory and compute of one rank, collectives that move its own part only
};

struct CommunicatorOptions {
  CommunicatorKind kind = CommunicatorKind::single;
  int rank = 0;
  int size = 1;
  std::string master_addr = {};  // of NCCL: where rank 0 is, and
  int master_port = 0;           // the port at which it awaits the others
  std::string nonce = {};        // of NCCL: of this start of this run, the same on all ranks; keeps other runs' processes away
  double start_timeout = 300;    // of NCCL: seconds until all ranks have come
  Agreement agreement = {};     // what all ranks must have alike; held against each other when they have met
  std::string log_folder = {};  // of the log of collectives and the watchdog, for all ranks the same; empty: neither
  double collective_timeout = WatchOptions{}.timeout;  // seconds
};

// The device outlives the communicator. Throws Error where the ranks cannot be joined.
std::unique_ptr<Communicator> open_communicator(const CommunicatorOptions& options, Device& device);

}  // namespace tinyllama
