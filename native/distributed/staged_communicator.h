// Device memory through the host: what a communicator of host memory does, for ranks that share one GPU, which NCCL refuses. It waits for the device
// before and after every collective: for correctness only, never for speed.
#pragma once
#include <memory>

#include "native/device/device.h"
#include "native/distributed/communicator.h"

namespace tinyllama {

// `host` works on host memory.
std::unique_ptr<Communicator> make_staged_communicator(Device& device, std::unique_ptr<Communicator> host);

}  // namespace tinyllama
