#include "native/device/cpu/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "native/core/error.h"

namespace tinyllama {
namespace {

// Long enough to bridge the gap between two operations of a step, short enough not to take a shared machine's cycles.
constexpr int spins = 4000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

}  // namespace

struct ThreadPool::State {
  // One loop. Each starts with the generation counter's step; `pending` counts the workers that have not left it yet.
  Invoke invoke = nullptr;
  void* context = nullptr;
  std::int64_t items = 0;
  alignas(64) std::atomic<std::int64_t> next{0};
  alignas(64) std::atomic<std::uint64_t> generation{0};
  alignas(64) std::atomic<int> pending{0};
  std::atomic<bool> stopping{false};

  std::mutex mutex;
  std::condition_variable started, finished;
  std::exception_ptr failure;
  std::int64_t failed_item = std::numeric_limits<std::int64_t>::max();
  std::vector<std::thread> workers;

  void work(int thread) {
    for (;;) {
      const std::int64_t item = next.fetch_add(1, std::memory_order_relaxed);
      if (item >= items) return;
      try {
        invoke(context, item, thread);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (item < failed_item) {
          failed_item = item;
          failure = std::current_exception();
        }
        next.store(items, std::memory_order_relaxed);
      }
    }
  }

  void serve(int thread) {
    std::uint64_t seen = 0;
    for (;;) {
      for (int spin = 0; spin < spins && generation.load(std::memory_order_acquire) == seen; ++spin) relax();
      if (generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(mutex);
        started.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
      }
      ++seen;
      if (stopping.load(std::memory_order_relaxed)) return;
      work(thread);
      if (pending.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        const std::lock_guard lock(mutex);
        finished.notify_one();
      }
    }
  }

  void announce() {
    {
      const std::lock_guard lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
    }
    started.notify_all();
  }

  void stop() {
    stopping.store(true);
    announce();
    for (std::thread& worker : workers) worker.join();
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  require(threads >= 1, "a thread pool needs at least one thread, not " + std::to_string(threads));
  state_->workers.reserve(static_cast<std::size_t>(threads - 1));
  try {
    for (int thread = 1; thread < threads; ++thread) state_->workers.emplace_back([state = state_.get(), thread] { state->serve(thread); });
  } catch (const std::system_error& error) {
    state_->stop();
    throw Error("cannot start " + std::to_string(threads) + " threads: " + error.what() + "; ask for fewer");
  }
}

ThreadPool::~ThreadPool() { state_->stop(); }

int ThreadPool::size() const { return static_cast<int>(state_->workers.size()) + 1; }

void ThreadPool::run(std::int64_t items, Invoke invoke, void* context) {
  if (items <= 0) return;
  State& state = *state_;
  if (items == 1 || state.workers.empty()) {
    for (std::int64_t item = 0; item < items; ++item) invoke(context, item, 0);
    return;
  }
  state.invoke = invoke;
  state.context = context;
  state.items = items;
  state.failure = nullptr;
  state.failed_item = std::numeric_limits<std::int64_t>::max();
  state.next.store(0, std::memory_order_relaxed);
  state.pending.store(static_cast<int>(state.workers.size()), std::memory_order_relaxed);
  state.announce();
  state.work(0);
  for (int spin = 0; spin < spins && state.pending.load(std::memory_order_acquire) != 0; ++spin) relax();
  if (state.pending.load(std::memory_order_acquire) != 0) {
    std::unique_lock lock(state.mutex);
    state.finished.wait(lock, [&] { return state.pending.load(std::memory_order_acquire) == 0; });
  }
  if (state.failure) std::rethrow_exception(state.failure);
}

}  // namespace tinyllama
