#include "native/device/cuda/nccl_communicator.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "native/core/error.h"
#include "native/device/cuda/communication_stream.h"
#include "native/device/cuda/nccl_library.h"

namespace tinyllama::cuda {
namespace {

using Clock = std::chrono::steady_clock;

// NCCL's handle, used without blocking: calls return at once, and the handle tells when they have got through.
class NcclRanks {
 public:
  NcclRanks(nccl::Handle handle, double timeout) : library_(nccl::Library::find()), handle_(handle), timeout_(timeout) {}
  ~NcclRanks() { leave(); }
  NcclRanks(const NcclRanks&) = delete;
  NcclRanks& operator=(const NcclRanks&) = delete;

  nccl::Handle handle() const { return handle_; }
  double timeout() const { return timeout_; }
  const nccl::Library& library() const { return library_; }
  const nccl::Functions& functions() const { return library_.functions(); }

  // Until what `call` began has got through. Throws Error, and aborts, where it fails or takes longer than the timeout.
  void settle(nccl::Status status, const char* call) {
    const Clock::time_point begun = Clock::now();
    for (int looks = 0; status == nccl::status_in_progress; ++looks) {
      const nccl::Status asked = functions().ncclCommGetAsyncError(handle_, &status);
      if (asked != nccl::status_success) status = asked;
      if (status != nccl::status_in_progress) break;
      const double seconds = std::chrono::duration<double>(Clock::now() - begun).count();
      if (seconds > timeout_) {
        abort();
        throw Error("NCCL " + library_.version() + ": " + call + " did not get through within " + std::to_string(static_cast<long>(timeout_)) +
                    " s: do all ranks run, and can their machines reach each other? NCCL_DEBUG=INFO and NCCL_SOCKET_IFNAME help");
      }
      // Most get through at once; joining takes a second.
      if (looks < 1000) std::this_thread::yield();
      else std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (status == nccl::status_success) return;
    const nccl::Handle failed = handle_;
    failed_.store(true);
    try {
      library_.fail(status, call, failed);
    } catch (...) {
      abort();
      throw;
    }
  }

  // What has gone wrong since the last call, on this side or on another.
  void check() {
    nccl::Status status = nccl::status_success;
    settle(functions().ncclCommGetAsyncError(handle_, &status), "ncclCommGetAsyncError");
    settle(status, "an earlier collective");
  }

  // Once, from any thread.
  void abort() noexcept {
    failed_.store(true);
    if (!gone_.exchange(true)) functions().ncclCommAbort(handle_);
  }

 private:
  // In order, with the other ranks, where nothing failed; a rank that has failed leaves without them.
  void leave() noexcept {
    if (gone_.load()) return;
    constexpr auto patience = std::chrono::seconds(10);
    const Clock::time_point begun = Clock::now();
    nccl::Status status = failed_.load() ? nccl::status_in_progress : functions().ncclCommFinalize(handle_);
    while (!failed_.load() && status == nccl::status_in_progress && Clock::now() - begun < patience) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (functions().ncclCommGetAsyncError(handle_, &status) != nccl::status_success) break;
    }
    if (status != nccl::status_success) return abort();
    if (!gone_.exchange(true)) functions().ncclCommDestroy(handle_);
  }

  const nccl::Library& library_;
  nccl::Handle handle_;
  double timeout_;
  std::atomic<bool> failed_ = false, gone_ = false;
};

// Memory for the exchange of host values: pinned on the host, and beside it on the device.
class ExchangeMemory {
 public:
  ~ExchangeMemory() { release(); }
  void reserve(std::size_t bytes) {
    if (bytes <= bytes_) return;
    release();
    CHECK_CUDA(cudaMallocHost(&host_, bytes));
    CHECK_CUDA(cudaMalloc(&device_, bytes));
    bytes_ = bytes;
  }
  void* host() const { return host_; }
  char* device() const { return static_cast<char*>(device_); }

 private:
  void release() {
    cudaFreeHost(host_);
    cudaFree(device_);
    host_ = device_ = nullptr;
    bytes_ = 0;
  }
  void* host_ = nullptr;
  void* device_ = nullptr;
  std::size_t bytes_ = 0;
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(std::shared_ptr<CommunicationStream> stream, std::unique_ptr<NcclRanks> ranks, int rank, int size)
      : stream_(std::move(stream)), ranks_(std::move(ranks)), rank_(rank), size_(size) {}
  ~NcclCommunicator() override {
    // What is under way reads and writes memory of others; where they are gone it never ends.
    constexpr auto patience = std::chrono::seconds(10);
    const Clock::time_point begun = Clock::now();
    while (cudaStreamQuery(stream_->stream()) == cudaErrorNotReady) {
      if (Clock::now() - begun > patience) {
        ranks_->abort();
        break;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }

  std::string name() const override { return "NCCL " + ranks_->library().version(); }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Ticket all_gather(void* out, const void* part, std::size_t bytes, CollectiveLabel) override {
    return issue("ncclAllGather", [&](auto& nccl, nccl::Handle handle, cudaStream_t stream) {
      return nccl.ncclAllGather(part, out, bytes, nccl::data_uint8, handle, stream);
    });
  }
  Ticket reduce_scatter(float* part, const float* whole, std::int64_t count, CollectiveLabel) override {
    return issue("ncclReduceScatter", [&](auto& nccl, nccl::Handle handle, cudaStream_t stream) {
      return nccl.ncclReduceScatter(whole, part, static_cast<std::size_t>(count), nccl::data_f32, nccl::operation_sum, handle, stream);
    });
  }
  Ticket all_reduce(float* values, std::int64_t count, CollectiveLabel) override {
    return issue("ncclAllReduce", [&](auto& nccl, nccl::Handle handle, cudaStream_t stream) {
      return nccl.ncclAllReduce(values, values, static_cast<std::size_t>(count), nccl::data_f32, nccl::operation_sum, handle, stream);
    });
  }
  Ticket all_to_all(void* out, const void* in, std::size_t bytes, CollectiveLabel) override {
    return issue("ncclSend and ncclRecv", [&](auto& nccl, nccl::Handle handle, cudaStream_t stream) {
      nccl.ncclGroupStart();
      nccl::Status status = nccl::status_success;
      const auto keep = [&](nccl::Status next) {
        if (next != nccl::status_success && next != nccl::status_in_progress && status == nccl::status_success) status = next;
      };
      for (int r = 0; r < size_; ++r) {
        const std::size_t place = static_cast<std::size_t>(r) * bytes;
        keep(nccl.ncclSend(static_cast<const char*>(in) + place, bytes, nccl::data_uint8, r, handle, stream));
        keep(nccl.ncclRecv(static_cast<char*>(out) + place, bytes, nccl::data_uint8, r, handle, stream));
      }
      const nccl::Status ended = nccl.ncclGroupEnd();
      return status == nccl::status_success ? ended : status;
    });
  }
  void wait(Ticket ticket) override { stream_->wait(ticket); }
  void exchange(void* all, const void* own, std::size_t bytes) override;
  std::unique_ptr<Communicator> split(const std::vector<int>& colours) override;
  Progress progress(Ticket ticket) override { return stream_->progress(ticket); }
  void abort() noexcept override { ranks_->abort(); }

 private:
  template <class Call>
  Ticket issue(const char* name, const Call& call) {
    ranks_->check();
    const Ticket ticket = stream_->begin();
    ranks_->settle(call(ranks_->functions(), ranks_->handle(), stream_->stream()), name);
    stream_->end(ticket);
    return ticket;
  }
  void finish_stream();

  std::shared_ptr<CommunicationStream> stream_;
  std::unique_ptr<NcclRanks> ranks_;
  int rank_, size_;
  ExchangeMemory memory_;
};

// Waits on the host for the stream, and looks at what NCCL says meanwhile: a rank that is gone does not end a kernel.
void NcclCommunicator::finish_stream() {
  for (;;) {
    const cudaError_t status = cudaStreamQuery(stream_->stream());
    if (status == cudaSuccess) return;
    if (status != cudaErrorNotReady) CHECK_CUDA(status);
    ranks_->check();
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void NcclCommunicator::exchange(void* all, const void* own, std::size_t bytes) {
  if (bytes == 0) return;
  stream_->bind();
  const std::size_t total = bytes * static_cast<std::size_t>(size_);
  memory_.reserve(total);
  std::memcpy(memory_.host(), own, bytes);
  char* place = memory_.device() + static_cast<std::size_t>(rank_) * bytes;
  // Not through begin(): host values depend on nothing that the device computes.
  CHECK_CUDA(cudaMemcpyAsync(place, memory_.host(), bytes, cudaMemcpyHostToDevice, stream_->stream()));
  ranks_->settle(ranks_->functions().ncclAllGather(place, memory_.device(), bytes, nccl::data_uint8, ranks_->handle(), stream_->stream()),
                 "ncclAllGather");
  CHECK_CUDA(cudaMemcpyAsync(memory_.host(), memory_.device(), total, cudaMemcpyDeviceToHost, stream_->stream()));
  finish_stream();
  std::memcpy(all, memory_.host(), total);
}

std::unique_ptr<Communicator> NcclCommunicator::split(const std::vector<int>& colours) {
  const int colour = colours.at(static_cast<std::size_t>(rank_));
  int part_rank = 0, part_size = 0;
  for (int r = 0; r < size_; ++r) {
    require(colours.at(static_cast<std::size_t>(r)) >= 0, "a colour must not be negative");
    if (colours[static_cast<std::size_t>(r)] != colour) continue;
    part_rank += r < rank_ ? 1 : 0;
    ++part_size;
  }
  stream_->bind();
  nccl::Handle part = nullptr;
  ranks_->settle(ranks_->functions().ncclCommSplit(ranks_->handle(), colour, rank_, &part, nullptr), "ncclCommSplit");
  // Another thread of NCCL's hands it out, which may be after the parent is settled.
  const Clock::time_point begun = Clock::now();
  while (std::atomic_ref(part).load(std::memory_order_acquire) == nullptr) {
    ranks_->check();
    require(Clock::now() - begun < std::chrono::duration<double>(ranks_->timeout()),
            "NCCL " + ranks_->library().version() + ": ncclCommSplit gave no communicator");
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  auto ranks = std::make_unique<NcclRanks>(part, ranks_->timeout());
  ranks->settle(nccl::status_in_progress, "ncclCommSplit");
  return std::make_unique<NcclCommunicator>(stream_, std::move(ranks), part_rank, part_size);
}

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(CudaContext& context, const NcclOptions& options) {
  const nccl::Library& library = nccl::Library::find();
  auto stream = std::make_shared<CommunicationStream>(context);
  nccl::UniqueId id;
  static_assert(sizeof(id.bytes) == sizeof(options.id.bytes));
  std::memcpy(id.bytes, options.id.bytes, sizeof(id.bytes));
  nccl::Config config;
  config.blocking = 0;
  nccl::Handle handle = nullptr;
  const nccl::Status status = library.functions().ncclCommInitRankConfig(&handle, options.size, id, options.rank, &config);
  if (handle == nullptr) library.fail(status, "ncclCommInitRankConfig", nullptr);
  auto ranks = std::make_unique<NcclRanks>(handle, options.timeout);
  ranks->settle(status, "ncclCommInitRankConfig (ranks that join must each have a GPU of their own)");
  return std::make_unique<NcclCommunicator>(std::move(stream), std::move(ranks), options.rank, options.size);
}

}  // namespace tinyllama::cuda
