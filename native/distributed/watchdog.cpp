#include "native/distributed/watchdog.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

namespace tinyllama {
namespace {

constexpr auto look_every = std::chrono::milliseconds(100);
constexpr int looks_per_beat = 5;
constexpr int looks_per_publication = 20;
constexpr double ended_after = 3;  // seconds: a rank that ends at the very end of a run is not missed in what no longer comes
constexpr auto abort_within = std::chrono::seconds(5);

std::string path_of_report(const std::string& folder) { return (std::filesystem::path(folder) / "watchdog.txt").string(); }

// Whole, or not at all; the first rank's word stays.
void write_report(const std::string& folder, int rank, const std::string& line) {
  const std::string path = path_of_report(folder), draft = path + "." + std::to_string(rank);
  const int descriptor = open(draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) return;
  const bool whole = write(descriptor, line.data(), line.size()) == static_cast<ssize_t>(line.size()) && fsync(descriptor) == 0;
  close(descriptor);
  // link fails where the name is taken. What cannot be written has been said on stderr.
  if (whole && link(draft.c_str(), path.c_str()) != 0) unlink(draft.c_str());
  unlink(draft.c_str());
}

}  // namespace

Watchdog::Watchdog(const WatchOptions& options, int rank, int size)
    : options_(options), rank_(rank), log_(options.folder, rank, size, options.nonce) {
  if (rank == 0) unlink(path_of_report(options.folder).c_str());
  thread_ = std::thread([this] { loop(); });
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  changed_.notify_all();
  thread_.join();
  log_.close_in_order();
}

CollectiveEntry Watchdog::issue(Communicator& ranks, const std::vector<int>& members, const CollectiveEntry& entry) {
  const std::lock_guard lock(mutex_);
  const CollectiveEntry logged = log_.issue(entry);
  pending_.push_back({&ranks, members, logged, true, std::nullopt, std::nullopt, std::nullopt});
  // A call that blocks begins at once; one that does not is looked at again when it has returned.
  if (pending_.size() == 1) {
    log_.begin(logged.sequence);
    pending_.front().begun = Clock::now();
  }
  return logged;
}

void Watchdog::returned(std::uint64_t sequence, std::optional<Communicator::Ticket> ticket) {
  const std::lock_guard lock(mutex_);
  for (Pending& pending : pending_) {
    if (pending.entry.sequence != sequence) continue;
    pending.ticket = ticket;
    pending.in_call = false;
    // Of a call that does not block, the device may not have come to it yet.
    if (pending.progress() == Progress::queued) pending.begun.reset();
  }
  advance();
}

void Watchdog::forget(const Communicator& ranks) {
  const std::lock_guard lock(mutex_);
  std::erase_if(pending_, [&](const Pending& pending) { return pending.ranks == &ranks; });
}

std::string Watchdog::explain(const CollectiveEntry& entry, const std::vector<int>& members) const {
  return explain_failure(options_.folder, options_.nonce, {entry, rank_, members, 0});
}

// Collectives of one rank run one after the other: only the first that is not over can have begun.
void Watchdog::advance() {
  while (!pending_.empty()) {
    Pending& first = pending_.front();
    const Progress progress = first.progress();
    if (progress == Progress::queued) return;
    if (!first.begun) {
      log_.begin(first.entry.sequence);
      first.begun = Clock::now();
    }
    if (progress == Progress::running) return;
    log_.end(first.entry.sequence);
    pending_.pop_front();
  }
}

void Watchdog::loop() {
  std::unique_lock lock(mutex_);
  for (long looks = 0; !over_; ++looks) {
    if (looks % looks_per_beat == 0) log_.beat();
    if (looks % looks_per_publication == 0) {
      lock.unlock();  // it may take its time
      log_.publish();
      lock.lock();
    }
    advance();
    if (!pending_.empty() && pending_.front().begun) judge(pending_.front(), looks % looks_per_beat == 0);
    changed_.wait_for(lock, look_every, [&] { return over_; });
  }
}

void Watchdog::judge(Pending& pending, bool look_for_ended) {
  const double seconds = std::chrono::duration<double>(Clock::now() - *pending.begun).count();
  if (seconds >= options_.timeout) give_up(pending, seconds);
  if (seconds >= options_.timeout / 2 && !pending.heartbeats)
    pending.heartbeats = read_heartbeats(options_.folder, options_.nonce, pending.members);
  if (look_for_ended && seconds >= std::min(ended_after, options_.timeout / 2) && !ended_members(options_.folder, options_.nonce, pending.members).empty())
    give_up(pending, seconds);
}

void Watchdog::give_up(const Pending& pending, double seconds) {
  const std::string line = diagnose(options_.folder, options_.nonce, stall(pending, seconds), pending.heartbeats.value_or(Heartbeats{})) + "\n";
  const std::string said = "tinyllama: rank " + std::to_string(rank_) + " ends: " + line;
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, said.data(), said.size());
  write_report(options_.folder, rank_, line);
  log_.publish();
  // Aborting may itself hang where a driver does.
  std::thread([ranks = pending.ranks] {
    ranks->abort();
    _exit(watchdog_exit_code);
  }).detach();
  std::this_thread::sleep_for(abort_within);
  _exit(watchdog_exit_code);
}

}  // namespace tinyllama
