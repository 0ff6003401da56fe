#include "native/core/job_thread.h"

#include <future>
#include <utility>

namespace tinyllama {

namespace {

class Call final : public Job {
 public:
  explicit Call(const std::function<void()>& call) : task_(call) {}
  std::future<void> over() { return task_.get_future(); }
  void run() noexcept override { task_(); }

 private:
  std::packaged_task<void()> task_;
};

}  // namespace

JobThread::JobThread(std::size_t capacity, Finished finished)
    : capacity_(capacity), finished_(std::move(finished)), thread_([this] { work(); }) {}

JobThread::~JobThread() { stop(); }

bool JobThread::post(std::unique_ptr<Job>& job) {
  {
    const std::lock_guard lock(mutex_);
    if (waiting_.size() >= capacity_) return false;
    waiting_.push_back({std::move(job), true});
  }
  changed_.notify_one();
  return true;
}

void JobThread::run(const std::function<void()>& call) {
  auto job = std::make_unique<Call>(call);
  auto over = job->over();
  {
    const std::lock_guard lock(mutex_);
    waiting_.push_back({std::move(job), false});
  }
  changed_.notify_one();
  over.get();
}

Jobs JobThread::withdraw(const std::function<bool(const Job&)>& wanted) {
  const std::lock_guard lock(mutex_);
  Jobs taken;
  while (!waiting_.empty() && waiting_.back().posted && wanted(*waiting_.back().job)) {
    taken.push_front(std::move(waiting_.back().job));
    waiting_.pop_back();
  }
  return taken;
}

Jobs JobThread::stop(std::function<void()> last) {
  if (!thread_.joinable()) return {};
  std::deque<Entry> left;
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    last_ = std::move(last);
    left.swap(waiting_);
  }
  changed_.notify_one();
  thread_.join();
  Jobs jobs;
  for (Entry& entry : left) jobs.push_back(std::move(entry.job));
  return jobs;
}

void JobThread::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
    if (stopping_) break;
    Entry entry = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    entry.job->run();
    if (entry.posted) finished_(std::move(entry.job));
    entry.job.reset();
    lock.lock();
  }
  lock.unlock();
  if (last_) last_();
}

}  // namespace tinyllama
