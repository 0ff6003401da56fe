#include "native/distributed/staged_communicator.h"

#include <utility>

namespace tinyllama {
namespace {

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(Device& device, std::unique_ptr<Communicator> host) : device_(device), host_(std::move(host)) {}

  std::string name() const override { return host_->name() + ", staged through the host (for correctness only)"; }
  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  Ticket all_gather(void* out, const void* part, std::size_t bytes, CollectiveLabel label) override {
    const void* own = fetch(part, bytes);
    void* all = room(out_, bytes * ranks());
    host_->all_gather(all, own, bytes, label);
    return store(out, all, bytes * ranks());
  }
  Ticket reduce_scatter(float* part, const float* whole, std::int64_t count, CollectiveLabel label) override {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
    const auto* from = static_cast<const float*>(fetch(whole, bytes * ranks()));
    auto* sum = static_cast<float*>(room(out_, bytes));
    host_->reduce_scatter(sum, from, count, label);
    return store(part, sum, bytes);
  }
  Ticket all_reduce(float* values, std::int64_t count, CollectiveLabel label) override {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(float);
    auto* there = static_cast<float*>(fetch(values, bytes));
    host_->all_reduce(there, count, label);
    return store(values, there, bytes);
  }
  Ticket all_to_all(void* out, const void* in, std::size_t bytes, CollectiveLabel label) override {
    const void* from = fetch(in, bytes * ranks());
    void* to = room(out_, bytes * ranks());
    host_->all_to_all(to, from, bytes, label);
    return store(out, to, bytes * ranks());
  }
  void wait(Ticket) override {}
  void exchange(void* all, const void* own, std::size_t bytes) override { host_->exchange(all, own, bytes); }
  std::unique_ptr<Communicator> split(const std::vector<int>& colours) override {
    return make_staged_communicator(device_, host_->split(colours));
  }

 private:
  std::size_t ranks() const { return static_cast<std::size_t>(size()); }
  static void* room(std::vector<std::byte>& memory, std::size_t bytes) {
    if (memory.size() < bytes) memory.resize(bytes);
    return memory.data();
  }
  void* fetch(const void* device, std::size_t bytes) {
    void* host = room(in_, bytes);
    device_.copy_out(host, device, bytes);
    device_.synchronize();
    return host;
  }
  Ticket store(void* device, const void* host, std::size_t bytes) {
    device_.copy_in(device, host, bytes);
    device_.synchronize();
    return 0;
  }

  Device& device_;
  std::unique_ptr<Communicator> host_;
  std::vector<std::byte> in_, out_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(Device& device, std::unique_ptr<Communicator> host) {
  return std::make_unique<StagedCommunicator>(device, std::move(host));
}

}  // namespace tinyllama
