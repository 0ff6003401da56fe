#include "native/distributed/watched_communicator.h"

#include <exception>
#include <numeric>
#include <optional>
#include <utility>

#include "native/core/error.h"
#include "native/distributed/watchdog.h"

namespace tinyllama {
namespace {

// The number of a part of a communicator: the same on the part's ranks, another for every other part. The world is 0.
std::uint64_t number_of_part(std::uint64_t parent, std::uint64_t split, std::uint64_t colour) {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a, by words
  for (const std::uint64_t word : {parent, split, colour}) hash = (hash ^ word) * 0x100000001b3;
  return hash | 1;
}

class WatchedCommunicator final : public Communicator {
 public:
  WatchedCommunicator(std::unique_ptr<Communicator> ranks, std::shared_ptr<Watchdog> dog, std::uint64_t number, std::vector<int> members)
      : ranks_(std::move(ranks)), dog_(std::move(dog)), number_(number), members_(std::move(members)) {}
  ~WatchedCommunicator() override { dog_->forget(*ranks_); }

  std::string name() const override { return ranks_->name(); }
  int rank() const override { return ranks_->rank(); }
  int size() const override { return ranks_->size(); }

  Ticket all_gather(void* out, const void* part, std::size_t bytes, CollectiveLabel label) override {
    return *watched(CollectiveKind::all_gather, bytes, label, [&]() -> std::optional<Ticket> { return ranks_->all_gather(out, part, bytes, label); });
  }
  Ticket reduce_scatter(float* part, const float* whole, std::int64_t count, CollectiveLabel label) override {
    return *watched(CollectiveKind::reduce_scatter, floats(count), label, [&]() -> std::optional<Ticket> { return ranks_->reduce_scatter(part, whole, count, label); });
  }
  Ticket all_reduce(float* values, std::int64_t count, CollectiveLabel label) override {
    return *watched(CollectiveKind::all_reduce, floats(count), label, [&]() -> std::optional<Ticket> { return ranks_->all_reduce(values, count, label); });
  }
  Ticket all_to_all(void* out, const void* in, std::size_t bytes, CollectiveLabel label) override {
    return *watched(CollectiveKind::all_to_all, bytes, label, [&]() -> std::optional<Ticket> { return ranks_->all_to_all(out, in, bytes, label); });
  }
  void wait(Ticket ticket) override { ranks_->wait(ticket); }
  void exchange(void* all, const void* own, std::size_t bytes) override {
    watched(CollectiveKind::exchange, bytes, {}, [&]() -> std::optional<Ticket> {
      ranks_->exchange(all, own, bytes);
      return std::nullopt;
    });
  }
  std::unique_ptr<Communicator> split(const std::vector<int>& colours) override {
    const int colour = colours.at(static_cast<std::size_t>(rank()));
    std::vector<int> members;
    for (std::size_t r = 0; r < colours.size(); ++r)
      if (colours[r] == colour) members.push_back(members_.at(r));
    const std::uint64_t number = number_of_part(number_, ++splits_, static_cast<std::uint64_t>(colour));
    return std::make_unique<WatchedCommunicator>(ranks_->split(colours), dog_, number, std::move(members));
  }
  Progress progress(Ticket ticket) override { return ranks_->progress(ticket); }
  void abort() noexcept override { ranks_->abort(); }

 private:
  static std::size_t floats(std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(float); }

  template <class Call>
  std::optional<Ticket> watched(CollectiveKind kind, std::size_t bytes, CollectiveLabel label, const Call& call) {
    const CollectiveEntry entry = dog_->issue(
        *ranks_, members_, {.communicator = number_, .position = ++position_, .bytes = bytes, .kind = kind, .group = label.group});
    try {
      const std::optional<Ticket> ticket = call();
      dog_->returned(entry.sequence, ticket);
      return ticket;
    } catch (const std::exception& error) {
      dog_->forget(*ranks_);
      const std::string why = dog_->explain(entry, members_);
      throw Error(std::string(error.what()) + " in " + in_words(entry) + (why.empty() ? "" : ": " + why));
    }
  }

  std::unique_ptr<Communicator> ranks_;
  std::shared_ptr<Watchdog> dog_;
  std::uint64_t number_;
  std::vector<int> members_;  // ranks of the world
  std::uint64_t position_ = 0, splits_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> watch(std::unique_ptr<Communicator> ranks, const WatchOptions& options) {
  std::vector<int> world(static_cast<std::size_t>(ranks->size()));
  std::iota(world.begin(), world.end(), 0);
  auto dog = std::make_shared<Watchdog>(options, ranks->rank(), ranks->size());
  return std::make_unique<WatchedCommunicator>(std::move(ranks), std::move(dog), 0, std::move(world));
}

}  // namespace tinyllama
