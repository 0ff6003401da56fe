// The thread that runs jobs in order: order, capacity, withdrawal, and its end while jobs run and wait. Meant for the sanitizers too.
#include "native/core/job_thread.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "native/core/error.h"
#include "test/native/device_check.h"

namespace {

using namespace tinyllama;
using check::expect;

struct Task final : Job {
  Task(int number, std::function<void()> task = {}) : number(number), task(std::move(task)) { ++alive; }
  ~Task() override { --alive; }
  void run() noexcept override {
    if (task) task();
  }
  int number;
  std::function<void()> task;
  static inline std::atomic<int> alive = 0;
};

int number(const Job& job) { return static_cast<const Task&>(job).number; }

// What has run, and on which thread.
class Finished {
 public:
  JobThread::Finished take() {
    return [this](std::unique_ptr<Job> job) {
      const std::lock_guard lock(mutex_);
      numbers_.push_back(number(*job));
    };
  }
  std::vector<int> numbers() {
    const std::lock_guard lock(mutex_);
    return numbers_;
  }

 private:
  std::mutex mutex_;
  std::vector<int> numbers_;
};

bool post(JobThread& thread, int number, std::function<void()> task = {}) {
  std::unique_ptr<Job> job = std::make_unique<Task>(number, std::move(task));
  return thread.post(job);
}

// Keeps the thread busy until it is let go; begins before the constructor returns.
class Blocker {
 public:
  explicit Blocker(JobThread& thread) {
    expect(post(thread, 0,
                [this] {
                  begun_.set_value();
                  go_.get_future().wait();
                }),
           "the first job is taken");
    begun_.get_future().wait();
  }
  void let_go() { go_.set_value(); }

 private:
  std::promise<void> begun_, go_;
};

void test_order() {
  Finished finished;
  JobThread thread(1 << 20, finished.take());
  int count = 0;
  std::vector<int> expected;
  for (int i = 0; i < 10000; ++i) {
    expect(post(thread, i, [&] { ++count; }), "a job is taken");
    expected.push_back(i);
  }
  int seen = -1;
  thread.run([&] { seen = count; });
  expect(seen == 10000, "a call runs behind all that waits");
  expect(finished.numbers() == expected, "jobs finish in the order they were made");
  expect(Task::alive == 0, "finished jobs are gone");
}

void test_failure() {
  Finished finished;
  JobThread thread(4, finished.take());
  std::string what;
  try {
    thread.run([] { throw Error("as asked"); });
  } catch (const Error& error) {
    what = error.what();
  }
  expect(what == "as asked", "a call throws what it throws");
  thread.run([] {});
  expect(finished.numbers().empty(), "calls are not handed back");
}

void test_capacity_and_withdrawal() {
  Finished finished;
  JobThread thread(3, finished.take());
  Blocker blocker(thread);
  for (int i = 1; i <= 3; ++i) expect(post(thread, i), "there is room for three");
  std::unique_ptr<Job> fourth = std::make_unique<Task>(4);
  expect(!thread.post(fourth) && fourth != nullptr, "a fourth is refused and stays its owner's");
  const Jobs taken = thread.withdraw([](const Job& job) { return number(job) >= 2; });
  expect(taken.size() == 2 && number(*taken[0]) == 2 && number(*taken[1]) == 3, "the newest come back in their order");
  expect(thread.withdraw([](const Job&) { return false; }).empty(), "what is not wanted stays");
  blocker.let_go();
  thread.run([] {});
  expect(finished.numbers() == std::vector<int>{0, 1}, "what was withdrawn does not run");
}

void test_stop() {
  Finished finished;
  JobThread thread(8, finished.take());
  Blocker blocker(thread);
  for (int i = 1; i <= 3; ++i) expect(post(thread, i), "a job is taken");
  bool freed = false;
  // Long enough for stop() to have taken what waits.
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    blocker.let_go();
  });
  const Jobs left = thread.stop([&] { freed = finished.numbers() == std::vector<int>{0}; });
  later.join();
  expect(freed, "the running job ends, then the last call is made");
  expect(left.size() == 3 && number(*left[0]) == 1 && number(*left[2]) == 3, "what waited comes back in its order");
  expect(thread.stop([] { expect(false, "a second end does nothing"); }).empty(), "a second end gives nothing back");
}

void test_churn() {
  for (int round = 0; round < 300; ++round) {
    Finished finished;
    JobThread thread(64, finished.take());
    for (int i = 0; i < round % 50; ++i) expect(post(thread, i), "a job is taken");
    if (round % 3 == 0) thread.withdraw([](const Job&) { return true; });
    if (round % 2 == 0) thread.stop();
  }
  expect(Task::alive == 0, "no job outlives its thread");
}

}  // namespace

int main() {
  test_order();
  test_failure();
  test_capacity_and_withdrawal();
  test_stop();
  test_churn();
  return check::report("job_thread");
}
