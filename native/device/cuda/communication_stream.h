// The stream on which a GPU's collectives run in order, beside the one that computes, and the edges between the two:
//   compute → communication   begin(): what is issued next waits for all that compute was given so far;
//   communication → compute   wait(ticket): what compute is given next waits for the collectives up to this one.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "native/device/cuda/cuda_context.h"
#include "native/distributed/communicator.h"

namespace tinyllama::cuda {

class CommunicationStream {
 public:
  explicit CommunicationStream(CudaContext& context);
  ~CommunicationStream();
  CommunicationStream(const CommunicationStream&) = delete;
  CommunicationStream& operator=(const CommunicationStream&) = delete;

  cudaStream_t stream() const { return stream_; }
  // Makes this GPU the calling thread's.
  void bind();

  // Around what a collective issues on stream(). The ticket of `begin` is the collective's. Waits on the host where 512 collectives are under way.
  // Throws Error while compute is being recorded: a record repeats what is in it, and collectives are not to be repeated unseen.
  Communicator::Ticket begin();
  void end(Communicator::Ticket ticket);

  void wait(Communicator::Ticket ticket);
  // From any thread.
  Progress progress(Communicator::Ticket ticket);

 private:
  struct Slot {
    cudaEvent_t ready = nullptr, done = nullptr;
    std::atomic<Communicator::Ticket> ticket{-1};
  };
  Slot& slot_of(Communicator::Ticket ticket) { return slots_[static_cast<std::size_t>(ticket) % slots_.size()]; }

  CudaContext& context_;
  int ordinal_ = 0;
  cudaStream_t stream_ = nullptr;
  std::vector<Slot> slots_;
  Communicator::Ticket next_ = 0;
};

}  // namespace tinyllama::cuda
