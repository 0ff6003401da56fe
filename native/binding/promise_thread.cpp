#include "native/binding/promise_thread.h"

#include <mutex>
#include <set>

#include "native/core/error.h"

namespace tinyllama {

namespace {

// More than any caller has reason to hand over ahead: a call left waiting holds its arguments.
constexpr std::size_t capacity = 1024;

// Those of an environment that are open.
using OpenThreads = std::set<PromiseThread*>;

}  // namespace

// Jobs that have run, on their way to the JavaScript thread. Outlives the PromiseThread until the thread-safe function is finalized, which may still
// be told to call.
class PromiseThread::Outcomes {
 public:
  static std::shared_ptr<Outcomes> make(Napi::Env env, const std::string& name) {
    auto outcomes = std::make_shared<Outcomes>();
    auto context = std::make_unique<Context>(outcomes);
    // Of the C interface: under the sanitizers node-addon-api's typed one does not compile.
    const napi_status status = napi_create_threadsafe_function(env, nullptr, nullptr, Napi::String::New(env, "tinyllama." + name), 0, 1,
                                                               context.get(), free_context, context.get(), call, &outcomes->wake_);
    require(status == napi_ok, "no thread-safe function can be made for the " + name);
    context.release();
    napi_unref_threadsafe_function(env, outcomes->wake_);
    return outcomes;
  }

  // On the native thread, before close().
  void add(std::unique_ptr<Job> job) {
    {
      const std::lock_guard lock(mutex_);
      finished_.push_back(std::move(job));
    }
    napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
  }

  // The rest on the JavaScript thread.
  void expect_one(Napi::Env env) {
    if (under_way_++ == 0) napi_ref_threadsafe_function(env, wake_);
  }
  void settle(Napi::Env env) {
    Jobs jobs;
    {
      const std::lock_guard lock(mutex_);
      jobs.swap(finished_);
    }
    no_longer_expected(env, jobs.size());
    for (auto& job : jobs) {
      const Napi::HandleScope scope(env);
      static_cast<PromiseJob&>(*job).settle(env);
    }
  }
  void reject(Napi::Env env, Jobs jobs, const std::string& why) {
    no_longer_expected(env, jobs.size());
    for (auto& job : jobs) {
      const Napi::HandleScope scope(env);
      static_cast<PromiseJob&>(*job).reject(env, why);
    }
  }
  // When the native thread has ended.
  void close() {
    finished_.clear();
    napi_release_threadsafe_function(wake_, napi_tsfn_release);
  }

 private:
  using Context = std::shared_ptr<Outcomes>;
  static void free_context(napi_env, void* context, void*) { delete static_cast<Context*>(context); }
  static void call(napi_env env, napi_value, void* context, void*) {
    // Without an environment it is too late to answer; what is left goes with close().
    if (env == nullptr) return;
    const Context outcomes = *static_cast<Context*>(context);
    try {
      outcomes->settle(env);
    } catch (const Napi::Error& error) {
      error.ThrowAsJavaScriptException();
    }
  }

  void no_longer_expected(Napi::Env env, std::size_t jobs) {
    under_way_ -= jobs;
    if (jobs > 0 && under_way_ == 0) napi_unref_threadsafe_function(env, wake_);
  }

  napi_threadsafe_function wake_ = nullptr;
  std::size_t under_way_ = 0;
  std::mutex mutex_;
  Jobs finished_;
};

PromiseThread::PromiseThread(Napi::Env env, std::string name, std::function<void()> last)
    : env_(env),
      name_(std::move(name)),
      last_(std::move(last)),
      outcomes_(Outcomes::make(env, name_)),
      thread_(capacity, [outcomes = outcomes_](std::unique_ptr<Job> job) { outcomes->add(std::move(job)); }) {
  // Runs before the thread-safe function's own hook, which was added first.
  napi_add_env_cleanup_hook(env_, at_end_of_environment, this);
  Napi::Env(env_).GetInstanceData<OpenThreads>()->insert(this);
}

PromiseThread::~PromiseThread() { end(); }

void PromiseThread::at_end_of_environment(void* self) { static_cast<PromiseThread*>(self)->end(); }

void PromiseThread::end() {
  if (!open_) return;
  stop();
  outcomes_->close();
}

Jobs PromiseThread::stop() {
  open_ = false;
  napi_remove_env_cleanup_hook(env_, at_end_of_environment, this);
  Napi::Env(env_).GetInstanceData<OpenThreads>()->erase(this);
  return thread_.stop(last_);
}

void PromiseThread::require_open() const { require(open_, disposed_of()); }

std::string PromiseThread::disposed_of() const { return "the " + name_ + " was disposed of"; }

Napi::Promise PromiseThread::post(Napi::Env env, std::unique_ptr<PromiseJob> job) {
  const Napi::Promise promise = job->promise();
  std::unique_ptr<Job> taken = std::move(job);
  if (open_ && thread_.post(taken)) {
    outcomes_->expect_one(env);
  } else {
    static_cast<PromiseJob&>(*taken).reject(env, open_ ? std::to_string(capacity) + " calls wait already: await some of them first" : disposed_of());
  }
  return promise;
}

void PromiseThread::withdraw(Napi::Env env, const std::string& why) {
  outcomes_->reject(env, thread_.withdraw([](const Job& job) { return static_cast<const PromiseJob&>(job).withdrawable; }), why);
}

void PromiseThread::dispose(Napi::Env env) {
  if (!open_) return;
  Jobs waiting = stop();
  outcomes_->settle(env);
  outcomes_->reject(env, std::move(waiting), disposed_of());
  outcomes_->close();
}

void end_threads_with_process(Napi::Env env) {
  env.SetInstanceData(new OpenThreads());
  const auto at_exit = [](const Napi::CallbackInfo& info) {
    const OpenThreads open = *info.Env().GetInstanceData<OpenThreads>();
    for (PromiseThread* thread : open) thread->end();
  };
  const auto process = env.Global().Get("process").As<Napi::Object>();
  process.Get("on").As<Napi::Function>().Call(process, {Napi::String::New(env, "exit"), Napi::Function::New(env, at_exit)});
}

}  // namespace tinyllama
