// A native thread of a JavaScript object: its calls run one after the other, off the JavaScript thread, and are answered by promises.
#pragma once
#include <napi.h>

#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "native/core/job_thread.h"

namespace tinyllama {

// All that a call leaves for the JavaScript thread. Nothing of JavaScript is touched on the native one.
class PromiseJob : public Job {
 public:
  // `held` stays alive, and so does all that it refers to, until the promise settles.
  PromiseJob(Napi::Env env, Napi::Object held) : deferred_(env), held_(Napi::Persistent(held)) {}

  Napi::Promise promise() const { return deferred_.Promise(); }
  // On the JavaScript thread.
  virtual void settle(Napi::Env env) = 0;
  void reject(Napi::Env env, const std::string& why) { deferred_.Reject(Napi::Error::New(env, why).Value()); }

  // Whether PromiseThread::withdraw may take it back.
  bool withdrawable = false;

 protected:
  Napi::Promise::Deferred deferred_;

 private:
  Napi::ObjectReference held_;
};

// Resolves the promise with what `answer` makes of the work's result; an exception of either becomes a rejection with its message.
template <typename Result>
class CallJob final : public PromiseJob {
 public:
  using Work = std::function<Result()>;
  using Answer = std::function<Napi::Value(Napi::Env, Result&)>;

  CallJob(Napi::Env env, Napi::Object held, Work work, Answer answer)
      : PromiseJob(env, held), work_(std::move(work)), answer_(std::move(answer)) {}

  void run() noexcept override {
    try {
      result_.emplace(work_());
    } catch (const std::exception& error) {
      failure_ = error.what();
    }
  }
  void settle(Napi::Env env) override {
    if (!result_) return reject(env, failure_);
    try {
      deferred_.Resolve(answer_(env, *result_));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    }
  }

 private:
  Work work_;
  Answer answer_;
  std::optional<Result> result_;
  std::string failure_;
};

// Belongs to the JavaScript thread that made it. The event loop is kept alive while calls are under way, and only then. When the process or a worker
// thread ends meanwhile, the running call ends first; what waits is dropped.
class PromiseThread {
 public:
  // `name` is what messages call the owner: "model". `last` runs on the thread before it ends, and frees what belongs to it.
  PromiseThread(Napi::Env env, std::string name, std::function<void()> last);
  // As dispose(), but nobody is left to be answered: a call that is under way holds its owner.
  ~PromiseThread();
  PromiseThread(const PromiseThread&) = delete;
  PromiseThread& operator=(const PromiseThread&) = delete;

  // Promises settle in the order of the calls. Rejects at once after dispose(), and where too many calls wait.
  Napi::Promise post(Napi::Env env, std::unique_ptr<PromiseJob> job);

  void require_open() const;

  // Runs `call` behind the calls that wait, and returns its result: the JavaScript thread stands still meanwhile. Throws after dispose().
  template <typename Call>
  auto wait(Call call) {
    using Result = std::invoke_result_t<Call>;
    require_open();
    if constexpr (std::is_void_v<Result>) {
      thread_.run(call);
    } else {
      std::optional<Result> result;
      thread_.run([&] { result.emplace(call()); });
      return std::move(*result);
    }
  }

  // Takes back the newest calls, as far as they are withdrawable and have not begun; their promises are rejected with `why`.
  void withdraw(Napi::Env env, const std::string& why);

  // Lets the running call end, rejects those that wait, ends the thread. The running call's promise settles with its result. A second call does nothing.
  void dispose(Napi::Env env);

 private:
  class Outcomes;

  friend void end_threads_with_process(Napi::Env env);
  std::string disposed_of() const;
  Jobs stop();
  void end();
  static void at_end_of_environment(void* self);

  napi_env env_;
  std::string name_;
  std::function<void()> last_;
  std::shared_ptr<Outcomes> outcomes_;
  bool open_ = true;
  JobThread thread_;
};

// Once for each environment, before it makes a PromiseThread: process.exit() runs no hook of the environment, but listeners of "exit".
void end_threads_with_process(Napi::Env env);

}  // namespace tinyllama
