#include "native/binding/planning_binding.h"

#include <memory>
#include <string>
#include <vector>

#include "native/binding/arguments.h"
#include "native/binding/model_arguments.h"
#include "native/binding/promise_worker.h"
#include "native/core/error.h"
#include "native/device/open_device.h"
#include "native/model/kernel_timing.h"
#include "native/training/memory_plan.h"

namespace tinyllama {

namespace {

// {gpus: [{name, memory, computeCapability}], obstacle}: the GPUs that can be used, or why there are none.
Napi::Value gpus(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const GpuSurvey& there = survey_gpus();
  Napi::Array list = Napi::Array::New(env, there.gpus.size());
  for (std::size_t index = 0; index < there.gpus.size(); ++index) {
    const Gpu& gpu = there.gpus[index];
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("name", gpu.name);
    entry.Set("memory", static_cast<double>(gpu.memory));
    entry.Set("computeCapability", std::to_string(gpu.major) + "." + std::to_string(gpu.minor));
    list.Set(static_cast<std::uint32_t>(index), entry);
  }
  Napi::Object answer = Napi::Object::New(env);
  answer.Set("gpus", list);
  answer.Set("obstacle", there.obstacle);
  return answer;
}

// planTrainingMemory(config, options, batch, length): bytes by purpose.
Napi::Value training_memory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const LlamaConfig config = read_config(info[0]);
  validate(config);
  const EngineOptions options = read_options(info[1]);
  const std::int64_t batch = integer_argument(info[2], "batch"), length = integer_argument(info[3], "length");
  require(batch >= 1 && length >= 1 && batch <= INT32_MAX && length <= INT32_MAX, "batch and length must be at least 1 and fit 32 bits");
  const MemoryPlan plan = plan_training_memory(
      config, batch, length,
      {options.device.compute_type, options.state_type, options.recompute, options.sharding, read_world(info[1]).size,
       options.device.kind == DeviceKind::cuda});
  Napi::Object answer = Napi::Object::New(env);
  answer.Set("weights", static_cast<double>(plan.weights));
  answer.Set("gradients", static_cast<double>(plan.gradients));
  answer.Set("moments", static_cast<double>(plan.moments));
  answer.Set("activations", static_cast<double>(plan.activations));
  answer.Set("overhead", static_cast<double>(plan.overhead));
  return answer;
}

struct KernelReport {
  std::string device;
  std::vector<KernelTiming> timings;
};

// timeKernels(config, options, batch, length, rounds): Promise<{ device, timings }>.
Napi::Value kernel_timings(const Napi::CallbackInfo& info) {
  const LlamaConfig config = read_config(info[0]);
  validate(config);
  const EngineOptions options = read_options(info[1]);
  const std::int64_t batch = integer_argument(info[2], "batch"), length = integer_argument(info[3], "length");
  const std::int64_t rounds = integer_argument(info[4], "rounds");
  require(batch >= 1 && length >= 1 && rounds >= 1 && rounds <= 1000, "batch, length and rounds must be at least 1");
  return run_async<KernelReport>(
      info.Env(), "timeKernels",
      [=] {
        const std::unique_ptr<Device> device = open_device(options.device);
        return KernelReport{device->name(), time_kernels(*device, config, batch, length, options.recompute, static_cast<int>(rounds),
                                                         options.state_type)};
      },
      [](Napi::Env env, KernelReport& report) {
        Napi::Array list = Napi::Array::New(env, report.timings.size());
        for (std::size_t index = 0; index < report.timings.size(); ++index) {
          const KernelTiming& timing = report.timings[index];
          Napi::Object entry = Napi::Object::New(env);
          entry.Set("name", timing.name);
          entry.Set("seconds", timing.seconds);
          entry.Set("bytes", timing.bytes);
          entry.Set("operations", timing.operations);
          entry.Set("calls", static_cast<double>(timing.calls));
          entry.Set("perStep", timing.per_step);
          list.Set(static_cast<std::uint32_t>(index), entry);
        }
        Napi::Object answer = Napi::Object::New(env);
        answer.Set("device", report.device);
        answer.Set("timings", list);
        return answer;
      });
}

}  // namespace

void register_planning(Napi::Env env, Napi::Object exports) {
  exports.Set("timeKernels", Napi::Function::New(env, kernel_timings));
  exports.Set("planTrainingMemory", Napi::Function::New(env, training_memory));
  exports.Set("gpus", Napi::Function::New(env, gpus));
}

}  // namespace tinyllama
