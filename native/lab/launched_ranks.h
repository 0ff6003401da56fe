// Which of the processes that a launcher started this one is: by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, or as Open MPI's mpirun says it.
#pragma once
#include <cstdlib>
#include <string>

#include "native/core/error.h"

namespace tinyllama {

struct LaunchedRank {
  int rank = 0, size = 1, local_rank = 0;
  std::string master_addr = "127.0.0.1";
  int master_port = 0;
};

inline LaunchedRank launched_rank() {
  const auto number = [](const char* name, const char* mpirun_name) {
    const char* value = std::getenv(name);
    if (value == nullptr) value = std::getenv(mpirun_name);
    return value == nullptr ? -1 : std::atoi(value);
  };
  LaunchedRank found;
  found.rank = number("RANK", "OMPI_COMM_WORLD_RANK");
  found.size = number("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE");
  require(found.rank >= 0 && found.size >= 1, "no launcher says which rank this is: start it by mpirun, or set RANK and WORLD_SIZE");
  found.local_rank = number("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK");
  if (found.local_rank < 0) found.local_rank = 0;
  if (const char* address = std::getenv("MASTER_ADDR")) found.master_addr = address;
  if (const char* port = std::getenv("MASTER_PORT")) found.master_port = std::atoi(port);
  return found;
}

}  // namespace tinyllama
