// Rank r of a world of W that is not there: what this rank holds and computes is real, what the others would send is not. An all-gather puts the own
// part in its place and leaves the rest as it was, a reduce-scatter takes the own part of its own sum, an all-to-all moves every block to its own
// place, an exchange repeats the own value.
#pragma once
#include <memory>

#include "native/device/device.h"
#include "native/distributed/communicator.h"

namespace tinyllama {

std::unique_ptr<Communicator> make_fake_communicator(Device& device, int rank, int size);

}  // namespace tinyllama
