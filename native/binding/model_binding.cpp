#include "native/binding/model_binding.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "native/binding/arguments.h"
#include "native/binding/promise_worker.h"
#include "native/core/error.h"
#include "native/device/open_device.h"
#include "native/model/kernel_timing.h"
#include "native/model/memory_plan.h"
#include "native/distributed/single_communicator.h"
#include "native/training/training_engine.h"

namespace tinyllama {

namespace {

// What a JavaScript Model owns. Workers share it, so that a model can be disposed of while one of its calls runs.
class EngineHandle {
 public:
  explicit EngineHandle(std::unique_ptr<TrainingEngine> engine) : engine_(std::move(engine)) {}

  // One call at a time; after dispose() every call throws.
  template <typename Call>
  auto use(Call call) {
    const std::lock_guard lock(mutex_);
    require(engine_ != nullptr, "this model was disposed of");
    return call(*engine_);
  }
  void dispose() {
    const std::lock_guard lock(mutex_);
    engine_.reset();
  }

 private:
  std::mutex mutex_;
  std::unique_ptr<TrainingEngine> engine_;
};

LlamaConfig read_config(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "config");
  auto integer = [&](const char* name) { return integer_argument(object.Get(name), std::string("config.") + name); };
  LlamaConfig config;
  config.vocab_size = integer("vocab_size");
  config.hidden_size = integer("hidden_size");
  config.intermediate_size = integer("intermediate_size");
  config.num_hidden_layers = integer("num_hidden_layers");
  config.num_attention_heads = integer("num_attention_heads");
  config.num_key_value_heads = integer("num_key_value_heads");
  config.head_dim = integer("head_dim");
  config.rms_norm_eps = number_argument(object.Get("rms_norm_eps"), "config.rms_norm_eps");
  config.rope_theta = number_argument(object.Get("rope_theta"), "config.rope_theta");
  config.tie_word_embeddings = boolean_argument(object.Get("tie_word_embeddings"), "config.tie_word_embeddings");
  return config;
}

int read_threads(const Napi::Value& value) {
  const std::int64_t threads = integer_argument(object_argument(value, "options").Get("threads"), "options.threads");
  require(threads >= 1 && threads <= 1024, "options.threads must lie between 1 and 1024, got " + std::to_string(threads));
  return static_cast<int>(threads);
}

// One of the names, by its place among them; the first when nothing is given.
std::size_t read_choice(const Napi::Value& value, const std::string& name, std::initializer_list<const char*> choices) {
  if (value.IsUndefined()) return 0;
  const std::string given = string_argument(value, name);
  std::string all;
  std::size_t index = 0;
  for (const char* choice : choices) {
    if (given == choice) return index;
    all += std::string(index == 0 ? "\"" : ", \"") + choice + "\"";
    ++index;
  }
  throw Error(name + " must be one of " + all + ", got \"" + given + "\"");
}

EngineOptions read_options(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "options");
  EngineOptions options;
  options.device.threads = read_threads(value);
  options.device.kind = read_choice(object.Get("device"), "options.device", {"cpu", "cuda"}) == 0 ? DeviceKind::cpu : DeviceKind::cuda;
  if (const Napi::Value gpu = object.Get("gpu"); !gpu.IsUndefined())
    options.device.ordinal = static_cast<int>(integer_argument(gpu, "options.gpu"));
  options.device.compute_type = read_choice(object.Get("precision"), "options.precision", {"fp32", "bf16"}) == 0 ? DataType::f32 : DataType::bf16;
  options.device.graphs = read_choice(object.Get("graphs"), "options.graphs", {"on", "off"}) == 0;
  options.recompute =
      static_cast<Recompute>(read_choice(object.Get("recompute"), "options.recompute", {"none", "pointwise", "gate_up", "full"}));
  return options;
}

AdamWOptions read_step(const Napi::Value& value) {
  const Napi::Object object = object_argument(value, "options");
  auto number = [&](const char* name) { return number_argument(object.Get(name), std::string("options.") + name); };
  AdamWOptions options;
  options.step = integer_argument(object.Get("step"), "options.step");
  options.learning_rate = number("learningRate");
  options.beta1 = number("beta1");
  options.beta2 = number("beta2");
  options.epsilon = number("epsilon");
  options.weight_decay = number("weightDecay");
  options.clip = number("clip");
  const std::string decay = string_argument(object.Get("decay"), "options.decay");
  require(decay == "all" || decay == "matrices", "options.decay must be \"all\" or \"matrices\", got \"" + decay + "\"");
  options.decay = decay == "all" ? DecayPolicy::all : DecayPolicy::matrices;
  return options;
}

// A batch's ids, copied: the caller may change its arrays while the call is under way.
struct OwnedBatch {
  std::vector<std::int32_t> tokens, targets, first_keys;
  std::int64_t batch = 0, length = 0;
  TokenBatch view() const { return {tokens, targets, batch, length, first_keys}; }
};

std::vector<std::int32_t> copy_ids(const Napi::Value& value, const std::string& name) {
  const Napi::Int32Array ids = int32_argument(value, name);
  return {ids.Data(), ids.Data() + ids.ElementLength()};
}

OwnedBatch read_batch(const Napi::Value& value, bool with_targets) {
  const Napi::Object object = object_argument(value, "batch");
  OwnedBatch batch;
  batch.tokens = copy_ids(object.Get("tokens"), "batch.tokens");
  if (with_targets) batch.targets = copy_ids(object.Get("targets"), "batch.targets");
  if (const Napi::Value first_keys = object.Get("firstKeys"); !first_keys.IsUndefined())
    batch.first_keys = copy_ids(first_keys, "batch.firstKeys");
  batch.batch = integer_argument(object.Get("batch"), "batch.batch");
  batch.length = integer_argument(object.Get("length"), "batch.length");
  return batch;
}

void read_state(TrainingEngine& engine, const std::string& kind, std::int64_t offset, std::int64_t length, float* out) {
  if (kind == "weights") return engine.store.weights().read(offset, length, out);
  if (kind == "gradients") return engine.store.read_gradients(offset, length, out);
  if (kind == "firstMoment") return engine.optimizer.first_moment().read(offset, length, out);
  require(kind == "secondMoment", "kind must be \"weights\", \"gradients\", \"firstMoment\" or \"secondMoment\", got \"" + kind + "\"");
  engine.optimizer.second_moment().read(offset, length, out);
}

void write_state(TrainingEngine& engine, const std::string& kind, std::int64_t offset, std::int64_t length, const float* values) {
  if (kind == "weights") {
    engine.store.weights().write(offset, length, values);
    return engine.store.weights_written();
  }
  if (kind == "gradients") return engine.store.write_gradients(offset, length, values);
  if (kind == "firstMoment") return engine.optimizer.first_moment().write(offset, length, values);
  require(kind == "secondMoment", "kind must be \"weights\", \"gradients\", \"firstMoment\" or \"secondMoment\", got \"" + kind + "\"");
  engine.optimizer.second_moment().write(offset, length, values);
}

Napi::Float32Array to_float32_array(Napi::Env env, const std::vector<float>& values) {
  Napi::Float32Array array = Napi::Float32Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

class Model : public Napi::ObjectWrap<Model> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Model",
                       {InstanceAccessor<&Model::parameters>("parameters"), InstanceAccessor<&Model::parameter_count>("parameterCount"),
                        InstanceAccessor<&Model::device_name>("deviceName"), InstanceAccessor<&Model::memory_in_use>("deviceMemory"),
                        InstanceMethod<&Model::initialize>("initialize"), InstanceMethod<&Model::read>("read"),
                        InstanceMethod<&Model::write>("write"), InstanceMethod<&Model::accumulate>("accumulate"),
                        InstanceMethod<&Model::step>("step"), InstanceMethod<&Model::score>("score"),
                        InstanceMethod<&Model::logits>("logits"), InstanceMethod<&Model::discard>("discard"), InstanceMethod<&Model::dispose>("dispose")});
  }

  explicit Model(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Model>(info) {
    const LlamaConfig config = read_config(info[0]);
    const EngineOptions options = read_options(info[1]);
    layout_ = parameter_layout(config);
    std::unique_ptr<Device> device = open_device(options.device);
    std::unique_ptr<Communicator> world = make_single_communicator(*device);
    handle_ = std::make_shared<EngineHandle>(std::make_unique<TrainingEngine>(std::move(device), std::move(world), config, options));
    device_name_ = handle_->use([](TrainingEngine& engine) { return engine.device->name(); });
  }

 private:
  Napi::Value parameters(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    Napi::Array list = Napi::Array::New(env, layout_.parameters.size());
    for (std::size_t index = 0; index < layout_.parameters.size(); ++index) {
      const Parameter& parameter = layout_.parameters[index];
      Napi::Array shape = Napi::Array::New(env, parameter.shape.size());
      for (std::size_t axis = 0; axis < parameter.shape.size(); ++axis) {
        shape.Set(static_cast<std::uint32_t>(axis), Napi::Number::New(env, static_cast<double>(parameter.shape[axis])));
      }
      Napi::Object entry = Napi::Object::New(env);
      entry.Set("name", parameter.name);
      entry.Set("shape", shape);
      entry.Set("offset", static_cast<double>(parameter.offset));
      list.Set(static_cast<std::uint32_t>(index), entry);
    }
    return list;
  }

  Napi::Value parameter_count(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(layout_.count));
  }

  Napi::Value device_name(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), device_name_); }

  Napi::Value memory_in_use(const Napi::CallbackInfo& info) {
    const std::size_t bytes = handle_->use([](TrainingEngine& engine) { return engine.device->memory_in_use(); });
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  }

  Napi::Value initialize(const Napi::CallbackInfo& info) {
    const std::int64_t seed = integer_argument(info[0], "seed");
    handle_->use([&](TrainingEngine& engine) { engine.store.initialize(static_cast<std::uint64_t>(seed)); });
    return info.Env().Undefined();
  }

  Napi::Value read(const Napi::CallbackInfo& info) {
    const std::string kind = string_argument(info[0], "kind");
    const std::int64_t offset = integer_argument(info[1], "offset");
    const std::int64_t length = integer_argument(info[2], "length");
    return handle_->use([&](TrainingEngine& engine) {
      const std::int64_t count = engine.store.layout().count;
      require(offset >= 0 && length >= 0 && offset <= count && length <= count - offset,
              kind + ": elements [" + std::to_string(offset) + ", " + std::to_string(offset) + " + " + std::to_string(length) +
                  ") lie outside the " + std::to_string(count) + " parameters");
      Napi::Float32Array values = Napi::Float32Array::New(info.Env(), static_cast<std::size_t>(length));
      read_state(engine, kind, offset, length, values.Data());
      return values;
    });
  }

  Napi::Value write(const Napi::CallbackInfo& info) {
    const std::string kind = string_argument(info[0], "kind");
    const std::int64_t offset = integer_argument(info[1], "offset");
    const Napi::Float32Array values = float32_argument(info[2], "values");
    handle_->use([&](TrainingEngine& engine) {
      write_state(engine, kind, offset, static_cast<std::int64_t>(values.ElementLength()), values.Data());
    });
    return info.Env().Undefined();
  }

  Napi::Value accumulate(const Napi::CallbackInfo& info) {
    const double loss_scale = number_argument(info[1], "lossScale");
    return enqueue<BatchLoss>(
        info.Env(), "tinyllama.accumulate",
        [batch = read_batch(info[0], true), loss_scale](TrainingEngine& engine) {
          return engine.llama.accumulate(batch.view(), static_cast<float>(loss_scale));
        },
        [](Napi::Env env, BatchLoss& loss) {
          Napi::Object answer = Napi::Object::New(env);
          answer.Set("lossSum", loss.sum);
          answer.Set("scored", static_cast<double>(loss.scored));
          return answer;
        });
  }

  Napi::Value step(const Napi::CallbackInfo& info) {
    return enqueue<double>(
        info.Env(), "tinyllama.step",
        [options = read_step(info[0])](TrainingEngine& engine) {
          return engine.optimizer.step(options);
        },
        [](Napi::Env env, double& norm) {
          Napi::Object answer = Napi::Object::New(env);
          answer.Set("gradientNorm", norm);
          return answer;
        });
  }

  Napi::Value score(const Napi::CallbackInfo& info) {
    return enqueue<BatchScores>(
        info.Env(), "tinyllama.score",
        [batch = read_batch(info[0], true)](TrainingEngine& engine) { return engine.llama.score(batch.view()); },
        [](Napi::Env env, BatchScores& scores) {
          Napi::Uint8Array greedy = Napi::Uint8Array::New(env, scores.greedy.size());
          std::copy(scores.greedy.begin(), scores.greedy.end(), greedy.Data());
          Napi::Object answer = Napi::Object::New(env);
          answer.Set("logProbabilities", to_float32_array(env, scores.log_probabilities));
          answer.Set("greedy", greedy);
          return answer;
        });
  }

  Napi::Value logits(const Napi::CallbackInfo& info) {
    return enqueue<std::vector<float>>(
        info.Env(), "tinyllama.logits",
        [batch = read_batch(info[0], false)](TrainingEngine& engine) { return engine.llama.logits(batch.view()); },
        [](Napi::Env env, std::vector<float>& values) { return to_float32_array(env, values); });
  }

  Napi::Value discard(const Napi::CallbackInfo& info) {
    return enqueue<bool>(
        info.Env(), "tinyllama.discard",
        [](TrainingEngine& engine) {
          engine.store.clear_gradients();
          engine.device->synchronize();
          return true;
        },
        [](Napi::Env env, bool&) { return env.Undefined(); });
  }

  // Waits for the call that runs, if any, and frees the memory; calls still waiting are rejected.
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    handle_->dispose();
    return info.Env().Undefined();
  }

  // Calls run one after the other, in the order they were made.
  template <typename Result>
  Napi::Promise enqueue(Napi::Env env, const char* name, std::function<Result(TrainingEngine&)> call,
                        typename PromiseWorker<Result>::Answer answer) {
    auto work = [handle = handle_, call = std::move(call)] { return handle->use(call); };
    auto* worker = new PromiseWorker<Result>(env, name, std::move(work), std::move(answer));  // deletes itself when done
    worker->on_finished([queue = queue_] {
      queue->pop_front();
      if (!queue->empty()) queue->front()->Queue();
    });
    Napi::Promise promise = worker->promise();
    queue_->push_back(worker);
    if (queue_->size() == 1) worker->Queue();
    return promise;
  }

  using Queue = std::deque<Napi::AsyncWorker*>;  // the front one runs; each deletes itself when done

  ParameterLayout layout_;
  std::string device_name_;
  std::shared_ptr<EngineHandle> handle_;
  std::shared_ptr<Queue> queue_ = std::make_shared<Queue>();
};

}  // namespace

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
  const MemoryPlan plan = plan_training_memory(config, batch, length, options.device.compute_type, options.recompute);
  Napi::Object answer = Napi::Object::New(env);
  answer.Set("weights", static_cast<double>(plan.weights));
  answer.Set("gradients", static_cast<double>(plan.gradients));
  answer.Set("moments", static_cast<double>(plan.moments));
  answer.Set("activations", static_cast<double>(plan.activations));
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
        return KernelReport{device->name(), time_kernels(*device, config, batch, length, options.recompute, static_cast<int>(rounds))};
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

void register_model(Napi::Env env, Napi::Object exports) {
  exports.Set("Model", Model::define(env));
  exports.Set("timeKernels", Napi::Function::New(env, kernel_timings));
  exports.Set("planTrainingMemory", Napi::Function::New(env, training_memory));
  exports.Set("gpus", Napi::Function::New(env, gpus));
}

}  // namespace tinyllama
