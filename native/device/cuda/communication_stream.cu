#include "native/device/cuda/communication_stream.h"

namespace tinyllama::cuda {
namespace {

constexpr std::size_t most_under_way = 512;

}  // namespace

CommunicationStream::CommunicationStream(CudaContext& context) : context_(context), slots_(most_under_way) {
  CHECK_CUDA(cudaGetDevice(&ordinal_));
  // Of the highest priority: a collective's few blocks get their place as soon as one is free, not after a whole product.
  int lowest = 0, highest = 0;
  CHECK_CUDA(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  CHECK_CUDA(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, highest));
  for (Slot& slot : slots_) {
    CHECK_CUDA(cudaEventCreateWithFlags(&slot.ready, cudaEventDisableTiming));
    CHECK_CUDA(cudaEventCreateWithFlags(&slot.done, cudaEventDisableTiming));
  }
}

CommunicationStream::~CommunicationStream() {
  cudaSetDevice(ordinal_);
  for (Slot& slot : slots_) {
    if (slot.ready) cudaEventDestroy(slot.ready);
    if (slot.done) cudaEventDestroy(slot.done);
  }
  if (stream_) cudaStreamDestroy(stream_);
}

void CommunicationStream::bind() { CHECK_CUDA(cudaSetDevice(ordinal_)); }

Communicator::Ticket CommunicationStream::begin() {
  bind();
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  CHECK_CUDA(cudaStreamIsCapturing(context_.stream(), &status));
  require(status == cudaStreamCaptureStatusNone, "a collective must not be issued while the device's work is recorded");
  const Communicator::Ticket ticket = next_++;
  Slot& slot = slot_of(ticket);
  // The collective that had the slot before is over from here on, so that who asks for its ticket may be told so.
  if (slot.ticket.load() >= 0) CHECK_CUDA(cudaEventSynchronize(slot.done));
  CHECK_CUDA(cudaEventRecord(slot.ready, context_.stream()));
  CHECK_CUDA(cudaStreamWaitEvent(stream_, slot.ready));
  return ticket;
}

void CommunicationStream::end(Communicator::Ticket ticket) {
  Slot& slot = slot_of(ticket);
  CHECK_CUDA(cudaEventRecord(slot.done, stream_));
  slot.ticket.store(ticket);
}

void CommunicationStream::wait(Communicator::Ticket ticket) {
  bind();
  Slot& slot = slot_of(ticket);
  // Where a later collective has the slot, this one is over.
  if (slot.ticket.load() == ticket) CHECK_CUDA(cudaStreamWaitEvent(context_.stream(), slot.done));
}

Progress CommunicationStream::progress(Communicator::Ticket ticket) {
  cudaSetDevice(ordinal_);  // a thread that has no GPU yet would take the first one, and memory of it
  Slot& slot = slot_of(ticket);
  if (slot.ticket.load() > ticket) return Progress::over;
  if (slot.ticket.load() < ticket) return Progress::running;  // being issued
  if (cudaEventQuery(slot.done) == cudaSuccess) return Progress::over;
  return cudaEventQuery(slot.ready) == cudaSuccess ? Progress::running : Progress::queued;
}

}  // namespace tinyllama::cuda
