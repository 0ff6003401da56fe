// A fixed pool of threads for loops whose items are independent.
#pragma once
#include <cstdint>
#include <memory>
#include <type_traits>

namespace tinyllama {

class ThreadPool {
 public:
  // threads >= 1: the calling thread takes part, threads - 1 workers are started.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  // Calls body(item, thread) once for every item in [0, items), in any order and on any thread, 0 <= thread < size(), and returns when all
  // are done. What an item computes must depend on the item alone; `thread` only names scratch memory. Items are handed out in ascending
  // order. An exception of the lowest item that threw is rethrown here, after the others have ended. Loops do not nest.
  template <class Body>
  void parallel_for(std::int64_t items, Body&& body) {
    using Callable = std::remove_reference_t<Body>;
    run(items, [](void* context, std::int64_t item, int thread) { (*static_cast<Callable*>(context))(item, thread); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Invoke = void (*)(void* context, std::int64_t item, int thread);
  void run(std::int64_t items, Invoke invoke, void* context);

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tinyllama
