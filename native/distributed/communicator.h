// What ranks say to each other: collectives on device memory, and a small exchange of host values. It knows no model.
//
// Edges between a device's compute and its communication, all there are:
//   compute → communication   a collective begins after everything that its device was given before the call;
//   communication → compute   what the device is given after wait(ticket) begins after that collective is over.
// Between the two, compute and communication run side by side: until wait(), compute touches neither what the collective reads nor what it writes.
// Every rank issues the same collectives in the same order; collectives of one rank run one after the other. Errors are thrown, and leave the
// communicator unusable: the process is to end.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tinyllama {

// What a collective belongs to, for messages and for the log of collectives: a parameter group's index, or -1.
struct CollectiveLabel {
  int group = -1;
};

enum class Progress : std::uint8_t {
  queued,   // the device still does what was given to it before
  running,
  over,
};

class Communicator {
 public:
  using Ticket = std::int64_t;
  virtual ~Communicator() = default;
  virtual std::string name() const = 0;  // "single", "Open MPI 4.1.4", "NCCL 2.28.9", …
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // out(size() * bytes) = every rank's part, in the order of ranks. part may be its own place within out.
  virtual Ticket all_gather(void* out, const void* part, std::size_t bytes, CollectiveLabel label) = 0;
  // part(count) = the sum over ranks of their whole(size() * count) at [rank() * count, (rank() + 1) * count). part may be that place itself.
  virtual Ticket reduce_scatter(float* part, const float* whole, std::int64_t count, CollectiveLabel label) = 0;
  // values(count) = their sum over ranks, the same bits on every rank.
  virtual Ticket all_reduce(float* values, std::int64_t count, CollectiveLabel label) = 0;
  // Block r of in(size() * bytes) goes to rank r, where it becomes block rank() of out(size() * bytes). in and out do not overlap.
  virtual Ticket all_to_all(void* out, const void* in, std::size_t bytes, CollectiveLabel label) = 0;
  // What the device is given from now on begins after the collective of this ticket, and all before it, are over.
  virtual void wait(Ticket ticket) = 0;

  // Host memory: all(size() * bytes) = every rank's own(bytes), in the order of ranks. Blocks.
  virtual void exchange(void* all, const void* own, std::size_t bytes) = 0;

  // A communicator of the ranks whose colour is this one's, ordered by their rank here. colours[r] is rank r's; all ranks call it with the same.
  virtual std::unique_ptr<Communicator> split(const std::vector<int>& colours) = 0;

  // How far a collective is. May be called from another thread.
  virtual Progress progress(Ticket) { return Progress::over; }
  // Ends what of this communicator runs on the device, from any thread, even while another waits in it. The process is to end next.
  virtual void abort() noexcept {}
};

}  // namespace tinyllama
