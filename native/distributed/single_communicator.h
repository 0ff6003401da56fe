// A world of 1: nothing to tell to anyone, only copies from place to place.
#pragma once
#include <memory>

#include "native/device/device.h"
#include "native/distributed/communicator.h"

namespace tinyllama {

std::unique_ptr<Communicator> make_single_communicator(Device& device);

}  // namespace tinyllama
