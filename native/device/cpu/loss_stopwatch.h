// Divides the time of the linear loss among its products, when asked to.
#pragma once
#include <array>
#include <chrono>
#include <cstddef>
#include <vector>

#include "native/device/cpu/linear_loss.h"

namespace tinyllama {

// The time of a loop on all threads is divided as the threads spent theirs, so that waiting for the last thread counts.
class LossStopwatch {
 public:
  enum Part { forward_product, weight_product, hidden_product, other_work, parts };

  LossStopwatch(LinearLossSeconds* seconds, int threads) : seconds_(seconds), threads_(static_cast<std::size_t>(seconds ? threads : 0)) {}

  void open() {
    if (seconds_) opened_ = now();
  }
  // One thread's work on one item: from begin(), the time up to each lap() is the part's.
  void begin(int thread) {
    if (seconds_) threads_[static_cast<std::size_t>(thread)].last = now();
  }
  void lap(int thread, Part part) {
    if (!seconds_) return;
    Thread& own = threads_[static_cast<std::size_t>(thread)];
    const double time = now();
    own.spent[part] += time - own.last;
    own.last = time;
  }
  // Ends what open() began.
  void close() {
    if (!seconds_) return;
    const double elapsed = now() - opened_;
    std::array<double, parts> spent{};
    double total = 0;
    for (Thread& thread : threads_) {
      for (std::size_t part = 0; part < parts; ++part) {
        spent[part] += thread.spent[part];
        total += thread.spent[part];
      }
      thread.spent = {};
    }
    seconds_->forward += elapsed * spent[forward_product] / total;
    seconds_->weight_gradient += elapsed * spent[weight_product] / total;
    seconds_->input_gradient += elapsed * spent[hidden_product] / total;
  }
  // A step on all threads that belongs to one part.
  template <class Body>
  void measure(Part part, Body&& body) {
    open();
    begin(0);
    body();
    lap(0, part);
    close();
  }

 private:
  struct alignas(64) Thread {
    double last = 0;
    std::array<double, parts> spent{};
  };
  static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

  LinearLossSeconds* seconds_;
  std::vector<Thread> threads_;
  double opened_ = 0;
};

}  // namespace tinyllama
