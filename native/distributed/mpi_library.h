// The MPI communicator, from the engine's MPI library, which is loaded at run time: neither building nor starting the engine needs an MPI.
#pragma once
#include <memory>

#include "native/distributed/communicator.h"

namespace tinyllama {

// A communicator of host memory over MPI's world; initializes MPI. rank and size: what the caller takes the world for, held against MPI's view.
// TINYLLAMA_MPI_LIBRARY names the library's file; by default it lies beside the addon. Throws Error where there is no MPI, and where the ranks were
// not started by one launcher of its own (mpirun, srun --mpi).
std::unique_ptr<Communicator> open_mpi(int rank, int size);

}  // namespace tinyllama
