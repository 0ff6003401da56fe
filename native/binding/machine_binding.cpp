#include "native/binding/machine_binding.h"

#include <functional>
#include <string>
#include <utility>

#include "native/binding/arguments.h"
#include "native/binding/promise_worker.h"
#include "native/device/cpu/cpu_device.h"
#include "native/device/cpu/throughput.h"

namespace tinyllama {
namespace {

int threads_argument(const Napi::Value& value) {
  const std::int64_t threads = integer_argument(value, "threads");
  require(threads >= 1 && threads <= 1024, "threads must be between 1 and 1024, got " + std::to_string(threads));
  return static_cast<int>(threads);
}

double seconds_argument(const Napi::Value& value) {
  const double seconds = number_argument(value, "seconds");
  require(seconds >= 0 && seconds <= 3600, "seconds must be between 0 and 3600, got " + std::to_string(seconds));
  return seconds;
}

Napi::Value measure(Napi::Env env, const char* name, std::function<double()> work) {
  return run_async<double>(env, name, std::move(work), [](Napi::Env at, double& rate) { return Napi::Number::New(at, rate); });
}

// A wrong argument throws a JavaScript Error.
template <class Body>
Napi::Value checked(const Napi::CallbackInfo& info, Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw Napi::TypeError::New(info.Env(), error.what());
  }
}

// instructionSet(): string
Napi::Value instruction_set(const Napi::CallbackInfo& info) {
  return checked(info, [&] { return Napi::String::New(info.Env(), cpu_instruction_set()); });
}

// measurePeak(threads: number, seconds: number): Promise<number>
Napi::Value peak(const Napi::CallbackInfo& info) {
  return checked(info, [&] {
    const int threads = threads_argument(info[0]);
    const double seconds = seconds_argument(info[1]);
    return measure(info.Env(), "measurePeak", [threads, seconds] { return measure_peak(threads, seconds); });
  });
}

// measureMatmul(threads: number, shape: { m, n, k, transposeA, transposeB }, seconds: number): Promise<number>
Napi::Value matmul_rate(const Napi::CallbackInfo& info) {
  return checked(info, [&] {
    const int threads = threads_argument(info[0]);
    const Napi::Object object = object_argument(info[1], "shape");
    const double seconds = seconds_argument(info[2]);
    // A transposed left operand is that of a weight gradient, which the trainer accumulates.
    const bool transpose_a = boolean_argument(object.Get("transposeA"), "shape.transposeA");
    const MatmulShape shape{.m = integer_argument(object.Get("m"), "shape.m"),
                            .n = integer_argument(object.Get("n"), "shape.n"),
                            .k = integer_argument(object.Get("k"), "shape.k"),
                            .transpose_a = transpose_a,
                            .transpose_b = boolean_argument(object.Get("transposeB"), "shape.transposeB"),
                            .accumulate = transpose_a};
    require(shape.m >= 1 && shape.n >= 1 && shape.k >= 1, "shape: m, n and k must be at least 1");
    return measure(info.Env(), "measureMatmul", [threads, shape, seconds] { return measure_matmul(threads, shape, seconds); });
  });
}

// measureLossProducts(threads: number, shape: { rows, width, vocabulary }, seconds: number):
//   Promise<{ forward: number, inputGradient: number, weightGradient: number }>
Napi::Value loss_rates(const Napi::CallbackInfo& info) {
  return checked(info, [&] {
    const int threads = threads_argument(info[0]);
    const Napi::Object object = object_argument(info[1], "shape");
    const double seconds = seconds_argument(info[2]);
    const LossShape shape{.rows = integer_argument(object.Get("rows"), "shape.rows"),
                          .width = integer_argument(object.Get("width"), "shape.width"),
                          .vocabulary = integer_argument(object.Get("vocabulary"), "shape.vocabulary")};
    require(shape.rows >= 1 && shape.width >= 1 && shape.vocabulary >= 1, "shape: rows, width and vocabulary must be at least 1");
    return run_async<LossRates>(
        info.Env(), "measureLossProducts", [threads, shape, seconds] { return measure_loss_products(threads, shape, seconds); },
        [](Napi::Env env, LossRates& rates) {
          Napi::Object result = Napi::Object::New(env);
          result.Set("forward", Napi::Number::New(env, rates.forward));
          result.Set("inputGradient", Napi::Number::New(env, rates.input_gradient));
          result.Set("weightGradient", Napi::Number::New(env, rates.weight_gradient));
          return result;
        });
  });
}

}  // namespace

void register_machine(Napi::Env env, Napi::Object exports) {
  exports.Set("instructionSet", Napi::Function::New(env, instruction_set));
  exports.Set("measurePeak", Napi::Function::New(env, peak));
  exports.Set("measureMatmul", Napi::Function::New(env, matmul_rate));
  exports.Set("measureLossProducts", Napi::Function::New(env, loss_rates));
}

}  // namespace tinyllama
