// Tests that need several ranks start themselves again under mpirun.
#pragma once
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "native/core/engine_library.h"

namespace tinyllama::check {

// Why ranks cannot be started here; empty where they can.
inline std::string mpi_obstacle() {
  const std::string library = engine_library_path("TINYLLAMA_MPI_LIBRARY", "libtinyllama_mpi.so");
  if (!std::filesystem::exists(library)) return "no MPI when the engine was built (Debian: libopenmpi-dev openmpi-bin)";
  if (std::system("command -v mpirun > /dev/null") != 0) return "no mpirun in the PATH (Debian: openmpi-bin)";
  return "";
}

// Which rank of how many mpirun made this process.
inline int launched_rank() { return std::atoi(std::getenv("OMPI_COMM_WORLD_RANK")); }
inline int launched_size() { return std::atoi(std::getenv("OMPI_COMM_WORLD_SIZE")); }

// This program with `arguments` as `ranks` ranks; the exit code, 124 after `seconds`. Single-copy transfers between processes are forbidden in most
// containers, where Open MPI would complain and go on.
inline int mpirun(int ranks, const std::string& arguments, int seconds = 120) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  const std::string command = "OMPI_MCA_btl_vader_single_copy_mechanism=none timeout -k 5 " + std::to_string(seconds) +
                              " mpirun --allow-run-as-root --oversubscribe --bind-to none -n " + std::to_string(ranks) + " " + self + " " + arguments;
  const int status = std::system(command.c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace tinyllama::check
