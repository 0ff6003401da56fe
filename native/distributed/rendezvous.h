// How ranks find each other where no launcher joins them (NCCL): all come to rank 0 by TCP, say who they are, and leave with what rank 0 hands out.
// Each introduces itself with the run's nonce, its rank, the world's size and what all must agree on; rank 0 answers when all are there. A process
// of another run is refused and does not count.
#pragma once
#include <string>

#include "native/distributed/agreement.h"

namespace tinyllama {

struct RendezvousOptions {
  int rank = 0;
  int size = 1;
  std::string address;  // MASTER_ADDR: where rank 0 is
  int port = 0;         // MASTER_PORT: where it listens
  std::string nonce;    // of this start of this run, the same on all ranks
  Agreement agreement;
  double timeout = 300;  // seconds until all must have come
};

// Rank 0's payload, on every rank. Blocks until all ranks have come. Throws Error, on every rank that has come, where a rank is missing by the
// timeout, came twice or disagrees; on rank 0 where the port is in use; where the address does not resolve or no one listens there.
std::string rendezvous(const RendezvousOptions& options, const std::string& payload);

}  // namespace tinyllama
