// A communicator whose collectives are logged (collective_log.h) and watched: where one lasts longer than the timeout, or a rank's process has ended,
// this rank says in one line who keeps it waiting, on stderr and in <folder>/watchdog.txt (the first rank's word stays), aborts the communicator and
// ends the process with exit code 70. Nothing else ends a wait for a rank that is stopped or gone.
#pragma once
#include <memory>
#include <string>

#include "native/distributed/communicator.h"

namespace tinyllama {

constexpr int watchdog_exit_code = 70;

struct WatchOptions {
  std::string folder;  // that all ranks can write to
  std::string nonce;   // of this start of the run
  // Seconds that a collective may last. More than any rank computes, loads or saves between two of them; less than 60, so that looking and ending
  // fit in.
  double timeout = 55;
};

// Throws Error where the log cannot be written. Errors of a collective say which ranks issued something else, where that is so.
std::unique_ptr<Communicator> watch(std::unique_ptr<Communicator> ranks, const WatchOptions& options);

}  // namespace tinyllama
