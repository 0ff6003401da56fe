// MPI's beginning and end in this process.
#pragma once
#include <mpi.h>

#include <string>

namespace tinyllama {

// Throws Error with the call's name and MPI's word for `status` unless it is success.
void check_mpi(int status, const char* call);

// The world that the launcher started, of `size` ranks of which this is `rank`. Initializes MPI at the first call. An exit with code 0 or 75
// (preempted: all ranks leave together) finalizes MPI; any other code leaves without, so that the launcher ends the ranks that would wait for this one.
MPI_Comm mpi_world(int rank, int size);

// "Open MPI 4.1.4"
std::string mpi_version();

}  // namespace tinyllama
