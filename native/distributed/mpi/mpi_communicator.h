// Collectives of host memory over MPI. Every call blocks until its work is done.
#pragma once
#include <mpi.h>

#include <memory>

#include "native/distributed/communicator.h"

namespace tinyllama {

// Keeps `ranks` for good: to free it is a collective, in which a rank that ends early would leave the others.
std::unique_ptr<Communicator> make_mpi_communicator(MPI_Comm ranks);

}  // namespace tinyllama
