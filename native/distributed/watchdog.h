// The thread that watches this rank's collectives: it notes when they begin and end, shows that the process lives, and ends it where one does not end.
#pragma once
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "native/distributed/collective_log.h"
#include "native/distributed/communicator.h"
#include "native/distributed/diagnosis.h"
#include "native/distributed/watched_communicator.h"

namespace tinyllama {

class Watchdog {
 public:
  // `rank` and `size` are the world's.
  Watchdog(const WatchOptions& options, int rank, int size);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // A call to a communicator begins; the entry as logged.
  CollectiveEntry issue(Communicator& ranks, const std::vector<int>& members, const CollectiveEntry& entry);
  // The call has returned: the collective goes on under `ticket` until the communicator says that it is over; without one it is over.
  void returned(std::uint64_t sequence, std::optional<Communicator::Ticket> ticket);
  // No collective of this communicator is looked at any more.
  void forget(const Communicator& ranks);
  // Why the collective may have failed, in words; empty where nothing shows.
  std::string explain(const CollectiveEntry& entry, const std::vector<int>& members) const;

 private:
  using Clock = std::chrono::steady_clock;
  // A collective that is not over, as far as is known.
  struct Pending {
    Communicator* ranks;
    std::vector<int> members;
    CollectiveEntry entry;
    bool in_call;
    std::optional<Communicator::Ticket> ticket;
    Progress progress() const { return in_call ? Progress::running : ticket ? ranks->progress(*ticket) : Progress::over; }
    std::optional<Clock::time_point> begun;
    std::optional<Heartbeats> heartbeats;  // halfway to the timeout
  };

  void loop();
  void advance();
  void judge(Pending& pending, bool look_for_ended);
  [[noreturn]] void give_up(const Pending& pending, double seconds);
  Stall stall(const Pending& pending, double seconds) const { return {pending.entry, rank_, pending.members, seconds}; }

  WatchOptions options_;
  int rank_;
  CollectiveLog log_;
  std::mutex mutex_;  // of pending_ and over_
  std::deque<Pending> pending_;
  bool over_ = false;
  std::condition_variable changed_;
  std::thread thread_;
};

}  // namespace tinyllama
