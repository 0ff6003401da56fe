// One thread that runs jobs one after the other, in the order they were made.
#pragma once
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace tinyllama {

class Job {
 public:
  virtual ~Job() = default;
  // On the thread. What fails is the job's to keep.
  virtual void run() noexcept = 0;
};

using Jobs = std::deque<std::unique_ptr<Job>>;

// Belongs to one other thread, which makes all calls.
class JobThread {
 public:
  using Finished = std::function<void(std::unique_ptr<Job>)>;

  // `finished` is handed each posted job on the thread, when it has run. At most `capacity` jobs wait.
  JobThread(std::size_t capacity, Finished finished);
  // Stops; jobs that wait are destroyed.
  ~JobThread();
  JobThread(const JobThread&) = delete;
  JobThread& operator=(const JobThread&) = delete;

  // Takes the job, unless `capacity` jobs wait already; whether it did.
  [[nodiscard]] bool post(std::unique_ptr<Job>& job);

  // Runs `call` behind all that waits, and returns when it is over; throws what it throws.
  void run(const std::function<void()>& call);

  // Takes back jobs that have not begun, from the newest on, as long as they are `wanted`; in the order they were made.
  Jobs withdraw(const std::function<bool(const Job&)>& wanted);

  // Lets the running job end, runs `last` on the thread, and ends it. Hands back what waited. A second call does nothing.
  Jobs stop(std::function<void()> last = {});

 private:
  struct Entry {
    std::unique_ptr<Job> job;
    bool posted;
  };
  void work();

  const std::size_t capacity_;
  const Finished finished_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Entry> waiting_;
  bool stopping_ = false;
  std::function<void()> last_;
  std::thread thread_;  // the last member: it begins when all else is there
};

}  // namespace tinyllama
