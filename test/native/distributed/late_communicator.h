// A communicator of host memory that does everything as late as it may: a collective runs when it is waited for and not before, and until then what it
// will write is NaN. What computes on too early, changes what is still to be sent, or forgets to wait gives other results here than elsewhere, where a
// CPU's collectives are over when their call returns.
#pragma once
#include <cstddef>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "native/distributed/communicator.h"

namespace tinyllama::check {

class LateCommunicator final : public Communicator {
 public:
  explicit LateCommunicator(std::unique_ptr<Communicator> ranks) : LateCommunicator(std::move(ranks), std::make_shared<Queue>()) {}

  std::string name() const override { return ranks_->name() + ", as late as can be"; }
  int rank() const override { return ranks_->rank(); }
  int size() const override { return ranks_->size(); }

  Ticket all_gather(void* out, const void* part, std::size_t bytes, CollectiveLabel label) override {
    for (int r = 0; r < size(); ++r)
      if (part != place(out, r, bytes)) spoil(place(out, r, bytes), bytes);
    return later([=, this] { ranks_->all_gather(out, part, bytes, label); });
  }
  Ticket reduce_scatter(float* part, const float* whole, std::int64_t count, CollectiveLabel label) override {
    const bool inside = part >= whole && part < whole + count * size();
    if (!inside) spoil(part, static_cast<std::size_t>(count) * sizeof(float));
    return later([=, this] { ranks_->reduce_scatter(part, whole, count, label); });
  }
  Ticket all_reduce(float* values, std::int64_t count, CollectiveLabel label) override {
    return later([=, this] { ranks_->all_reduce(values, count, label); });
  }
  Ticket all_to_all(void* out, const void* in, std::size_t bytes, CollectiveLabel label) override {
    spoil(out, bytes * static_cast<std::size_t>(size()));
    return later([=, this] { ranks_->all_to_all(out, in, bytes, label); });
  }
  void wait(Ticket ticket) override { queue_->run_until(ticket); }
  void exchange(void* all, const void* own, std::size_t bytes) override {
    queue_->run_until(queue_->next - 1);
    ranks_->exchange(all, own, bytes);
  }
  std::unique_ptr<Communicator> split(const std::vector<int>& colours) override {
    queue_->run_until(queue_->next - 1);
    return std::unique_ptr<Communicator>(new LateCommunicator(ranks_->split(colours), queue_));
  }

 private:
  // Of the world and its parts together: one order. What no one waits for is never done, on any rank.
  struct Queue {
    Ticket next = 0;
    std::deque<std::pair<Ticket, std::function<void()>>> waiting;
    void run_until(Ticket ticket) {
      for (; !waiting.empty() && waiting.front().first <= ticket; waiting.pop_front()) waiting.front().second();
    }
  };
  LateCommunicator(std::unique_ptr<Communicator> ranks, std::shared_ptr<Queue> queue) : ranks_(std::move(ranks)), queue_(std::move(queue)) {}

  static void* place(void* out, int rank, std::size_t bytes) { return static_cast<std::byte*>(out) + static_cast<std::size_t>(rank) * bytes; }
  static void spoil(void* memory, std::size_t bytes) { std::memset(memory, 0xff, bytes); }
  Ticket later(std::function<void()> act) {
    queue_->waiting.emplace_back(queue_->next, std::move(act));
    return queue_->next++;
  }

  std::unique_ptr<Communicator> ranks_;
  std::shared_ptr<Queue> queue_;
};

}  // namespace tinyllama::check
