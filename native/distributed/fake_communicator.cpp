#include "native/distributed/fake_communicator.h"

#include <algorithm>
#include <cstring>
#include <set>

namespace tinyllama {
namespace {

class FakeCommunicator final : public Communicator {
 public:
  FakeCommunicator(Device& device, int rank, int size) : device_(device), rank_(rank), size_(size) {}

  std::string name() const override { return "fake, rank " + std::to_string(rank_) + " of " + std::to_string(size_); }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Ticket all_gather(void* out, const void* part, std::size_t bytes, CollectiveLabel) override {
    const bool first = gathered_.insert(out).second;
    for (int rank = 0; rank < size_; ++rank) {
      if (rank == rank_ || first) device_.copy(static_cast<std::byte*>(out) + static_cast<std::size_t>(rank) * bytes, part, bytes);
    }
    return 0;
  }
  Ticket reduce_scatter(float* part, const float* whole, std::int64_t count, CollectiveLabel) override {
    device_.copy(part, whole + rank_ * count, static_cast<std::size_t>(count) * sizeof(float));
    return 0;
  }
  // The norms' gains, which others hold, belong to no group: this rank's zeros for them would make the whole pass zero.
  Ticket all_reduce(float* values, std::int64_t count, CollectiveLabel label) override {
    if (label.group < 0) device_.fill_normal(values, count, 0, 0, 1);
    return 0;
  }
  Ticket all_to_all(void* out, const void* in, std::size_t bytes, CollectiveLabel) override {
    device_.copy(out, in, static_cast<std::size_t>(size_) * bytes);
    return 0;
  }
  void wait(Ticket) override {}
  void exchange(void* all, const void* own, std::size_t bytes) override {
    for (std::size_t r = 0; r < static_cast<std::size_t>(size_); ++r) std::memmove(static_cast<std::byte*>(all) + r * bytes, own, bytes);
  }
  std::unique_ptr<Communicator> split(const std::vector<int>& colours) override {
    const int colour = colours.at(static_cast<std::size_t>(rank_));
    const auto before = std::count(colours.begin(), colours.begin() + rank_, colour);
    return make_fake_communicator(device_, static_cast<int>(before), static_cast<int>(std::count(colours.begin(), colours.end(), colour)));
  }

 private:
  Device& device_;
  int rank_, size_;
  std::set<const void*> gathered_;  // places that hold numbers
};

}  // namespace

std::unique_ptr<Communicator> make_fake_communicator(Device& device, int rank, int size) {
  return std::make_unique<FakeCommunicator>(device, rank, size);
}

}  // namespace tinyllama
