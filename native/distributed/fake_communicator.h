// Rank r of a world of W that is not there: what this rank holds and computes is real, what the others would send is made up, so that products compute
// with numbers like a model's (they are faster with zeros). The first all-gather into a place repeats the own part, later ones bring that alone anew;
// a reduce-scatter takes the own part of its own sum, an all-reduce of a group's values leaves them, and one of no group's gives normal values; an
// all-to-all moves every block to its own place; an exchange repeats the own value.
#pragma once
#include <memory>

#include "native/device/device.h"
#include "native/distributed/communicator.h"

namespace tinyllama {

std::unique_ptr<Communicator> make_fake_communicator(Device& device, int rank, int size);

}  // namespace tinyllama
