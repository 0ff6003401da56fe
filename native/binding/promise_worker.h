// Work off the JavaScript thread, answered by a promise.
#pragma once
#include <napi.h>

#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>

namespace tinyllama {

// Runs `work` on a thread of libuv's pool and resolves the promise with what `answer` makes of its result, on the JavaScript thread.
// An exception of either becomes a rejection with its message. Owns itself once queued.
template <typename Result>
class PromiseWorker : public Napi::AsyncWorker {
 public:
  using Work = std::function<Result()>;
  using Answer = std::function<Napi::Value(Napi::Env, Result&)>;

  PromiseWorker(Napi::Env env, const char* name, Work work, Answer answer)
      : Napi::AsyncWorker(env, name), deferred_(env), work_(std::move(work)), answer_(std::move(answer)) {}

  Napi::Promise promise() const { return deferred_.Promise(); }

 protected:
  void Execute() override {
    try {
      result_ = std::make_unique<Result>(work_());
    } catch (const std::exception& error) {
      SetError(error.what());
    }
  }
  void OnOK() override {
    try {
      deferred_.Resolve(answer_(Env(), *result_));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    }
  }
  void OnError(const Napi::Error& error) override {
    deferred_.Reject(error.Value());
  }

 private:
  Napi::Promise::Deferred deferred_;
  Work work_;
  Answer answer_;
  std::unique_ptr<Result> result_;
};

// Queues the work at once. `name` appears in async traces.
template <typename Result>
Napi::Promise run_async(Napi::Env env, const char* name, std::function<Result()> work, typename PromiseWorker<Result>::Answer answer) {
  auto* worker = new PromiseWorker<Result>(env, name, std::move(work), std::move(answer));  // deletes itself when done
  Napi::Promise promise = worker->promise();
  worker->Queue();
  return promise;
}

}  // namespace tinyllama
