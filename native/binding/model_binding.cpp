#include "native/binding/model_binding.h"

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "native/binding/arguments.h"
#include "native/binding/checkpoint_binding.h"
#include "native/binding/model_arguments.h"
#include "native/binding/promise_thread.h"
#include "native/core/error.h"
#include "native/device/contention.h"
#include "native/device/cuda/library.h"
#include "native/device/open_device.h"
#include "native/distributed/open_communicator.h"
#include "native/training/saved_state.h"
#include "native/training/training_engine.h"

namespace tinyllama {

namespace {

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
                        InstanceAccessor<&Model::device_name>("deviceName"), InstanceAccessor<&Model::memory>("memory"),
                        InstanceAccessor<&Model::state_type>("stateType"),
                        InstanceMethod<&Model::initialize>("initialize"), InstanceMethod<&Model::read>("read"),
                        InstanceMethod<&Model::write>("write"), InstanceMethod<&Model::snapshot>("snapshot"),
                        InstanceMethod<&Model::restore>("restore"), InstanceMethod<&Model::accumulate>("accumulate"),
                        InstanceMethod<&Model::step>("step"), InstanceMethod<&Model::score>("score"),
                        InstanceMethod<&Model::logits>("logits"), InstanceMethod<&Model::discard>("discard"),
                        InstanceMethod<&Model::exchange>("exchange"), InstanceAccessor<&Model::shares>("shares"),
                        InstanceMethod<&Model::contend>("contend"), InstanceMethod<&Model::end_contention>("endContention"),
                        InstanceMethod<&Model::dispose>("dispose")});
  }

  explicit Model(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Model>(info), thread_(info.Env(), "model", [this] {
    contention_.reset();
    engine_.reset();
  }) {
    const LlamaConfig config = read_config(info[0]);
    const EngineOptions options = read_options(info[1]);
    const CommunicatorOptions world_options = read_world(info[1]);
    layout_ = parameter_layout(config);
    state_type_ = options.state_type;
    thread_.wait([&] {
      std::unique_ptr<Device> device = open_device(options.device);
      device_name_ = device->name();
      context_bytes_ = device->memory_in_use() - device->overhead();
      std::unique_ptr<Communicator> world = open_communicator(world_options, *device);
      communicator_bytes_ = device->memory_in_use() - device->overhead() - context_bytes_;
      engine_ = std::make_unique<TrainingEngine>(std::move(device), std::move(world), config, options);
    });
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

  Napi::Value state_type(const Napi::CallbackInfo& info) {
    return Napi::String::New(info.Env(), state_type_ == DataType::bf16 ? "bf16" : "fp32");
  }

  // {inUse, context, communicator}: bytes on the device now, and what of them the driver and the communicator took before the model.
  Napi::Value memory(const Napi::CallbackInfo& info) {
    Napi::Object answer = Napi::Object::New(info.Env());
    answer.Set("inUse", static_cast<double>(thread_.wait([&] { return engine_->device->memory_in_use(); })));
    answer.Set("context", static_cast<double>(context_bytes_));
    answer.Set("communicator", static_cast<double>(communicator_bytes_));
    return answer;
  }

  // contend(multiprocessors, gigabytesPerSecond, mostSeconds): begins at once.
  Napi::Value contend(const Napi::CallbackInfo& info) {
    const ContentionOptions options{.multiprocessors = static_cast<int>(integer_argument(info[0], "multiprocessors")),
                                    .gigabytes_per_second = number_argument(info[1], "gigabytesPerSecond"),
                                    .most_seconds = number_argument(info[2], "mostSeconds")};
    thread_.wait([&] {
      require(!engine_->device->in_host_memory(), "contention is of a GPU, and this model computes on the CPU");
      require(contention_ == nullptr, "contention runs already");
      char error[1024] = "";
      contention_.reset(cuda_library().start_contention(*engine_->device, options, error, sizeof(error)));
      require(contention_ != nullptr, error);
    });
    return info.Env().Undefined();
  }

  // The gigabytes a second that it moved.
  Napi::Value end_contention(const Napi::CallbackInfo& info) {
    const double moved = thread_.wait([&] {
      require(contention_ != nullptr, "no contention runs");
      const double rate = contention_->stop();
      contention_.reset();
      return rate;
    });
    return Napi::Number::New(info.Env(), moved);
  }

  Napi::Value initialize(const Napi::CallbackInfo& info) {
    const std::int64_t seed = integer_argument(info[0], "seed");
    thread_.wait([&] { engine_->store.initialize(static_cast<std::uint64_t>(seed)); });
    return info.Env().Undefined();
  }

  Napi::Value read(const Napi::CallbackInfo& info) {
    const std::string kind = string_argument(info[0], "kind");
    const std::int64_t offset = integer_argument(info[1], "offset");
    const std::int64_t length = integer_argument(info[2], "length");
    require(offset >= 0 && length >= 0 && offset <= layout_.count && length <= layout_.count - offset,
            kind + ": elements [" + std::to_string(offset) + ", " + std::to_string(offset) + " + " + std::to_string(length) +
                ") lie outside the " + std::to_string(layout_.count) + " parameters");
    Napi::Float32Array values = Napi::Float32Array::New(info.Env(), static_cast<std::size_t>(length));
    float* const to = values.Data();
    thread_.wait([&] { read_state(*engine_, kind, offset, length, to); });
    return values;
  }

  Napi::Value write(const Napi::CallbackInfo& info) {
    const std::string kind = string_argument(info[0], "kind");
    const std::int64_t offset = integer_argument(info[1], "offset");
    const Napi::Float32Array values = float32_argument(info[2], "values");
    const float* const from = values.Data();
    const auto length = static_cast<std::int64_t>(values.ElementLength());
    thread_.wait([&] { write_state(*engine_, kind, offset, length, from); });
    return info.Env().Undefined();
  }

  Napi::Value snapshot(const Napi::CallbackInfo& info) {
    return post<SavedState>(
        info, Withdrawable::no, [](TrainingEngine& engine) { return take_snapshot(engine); },
        [this](Napi::Env env, SavedState& saved) { return snapshot_object(env, layout_, std::move(saved)); });
  }

  Napi::Value restore(const Napi::CallbackInfo& info) {
    return post<bool>(
        info, Withdrawable::no,
        [stored = read_stored_state(info[0], info[1]), threads = read_thread_count(info[2])](TrainingEngine& engine) {
          restore_state(engine, stored.files, stored.ranges, threads);
          return true;
        },
        [](Napi::Env env, bool&) { return env.Undefined(); });
  }

  Napi::Value accumulate(const Napi::CallbackInfo& info) {
    const double loss_scale = number_argument(info[1], "lossScale");
    return post<BatchLoss>(
        info, Withdrawable::yes,
        [batch = read_batch(info[0], true), loss_scale, round = read_round(info[2])](TrainingEngine& engine) {
          engine.store.begin_micro_batch(round);
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
    return post<double>(
        info, Withdrawable::no,
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
    return post<BatchScores>(
        info, Withdrawable::no,
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
    return post<std::vector<float>>(
        info, Withdrawable::no,
        [batch = read_batch(info[0], false)](TrainingEngine& engine) { return engine.llama.logits(batch.view()); },
        [](Napi::Env env, std::vector<float>& values) { return to_float32_array(env, values); });
  }

  // Accumulations that have not begun are dropped: nothing of them would be left.
  Napi::Value discard(const Napi::CallbackInfo& info) {
    thread_.withdraw(info.Env(), "the step was discarded");
    return post<bool>(
        info, Withdrawable::no,
        [](TrainingEngine& engine) {
          engine.store.clear_gradients();
          engine.device->synchronize();
          return true;
        },
        [](Napi::Env env, bool&) { return env.Undefined(); });
  }

  // Every rank's values, in the order of ranks.
  Napi::Value exchange(const Napi::CallbackInfo& info) {
    require(info[0].IsTypedArray() && info[0].As<Napi::TypedArray>().TypedArrayType() == napi_float64_array, "values must be a Float64Array");
    const Napi::Float64Array given = info[0].As<Napi::Float64Array>();
    return post<std::vector<double>>(
        info, Withdrawable::no,
        [own = std::vector<double>(given.Data(), given.Data() + given.ElementLength())](TrainingEngine& engine) {
          std::vector<double> all(own.size() * static_cast<std::size_t>(engine.world->size()));
          engine.world->exchange(all.data(), own.data(), own.size() * sizeof(double));
          return all;
        },
        [](Napi::Env env, std::vector<double>& values) {
          Napi::Float64Array array = Napi::Float64Array::New(env, values.size());
          std::copy(values.begin(), values.end(), array.Data());
          return array;
        });
  }

  // [{offset, count}]: the flat elements that this rank holds of weights and moments.
  Napi::Value shares(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    const auto& pieces = engine_->store.shards().pieces();
    Napi::Array list = Napi::Array::New(env, pieces.size());
    for (std::size_t index = 0; index < pieces.size(); ++index) {
      Napi::Object entry = Napi::Object::New(env);
      entry.Set("offset", static_cast<double>(pieces[index].flat));
      entry.Set("count", static_cast<double>(pieces[index].count));
      list.Set(static_cast<std::uint32_t>(index), entry);
    }
    return list;
  }

  // Waits for the call that runs, if any, and frees the memory; calls that wait are rejected.
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    thread_.dispose(info.Env());
    return info.Env().Undefined();
  }

  enum class Withdrawable : std::uint8_t { no, yes };

  // The job holds this object, and so the engine that it uses.
  template <typename Result>
  Napi::Promise post(const Napi::CallbackInfo& info, Withdrawable withdrawable, std::function<Result(TrainingEngine&)> call,
                     typename CallJob<Result>::Answer answer) {
    auto work = [this, call = std::move(call)] { return call(*engine_); };
    auto job = std::make_unique<CallJob<Result>>(info.Env(), info.This().As<Napi::Object>(), std::move(work), std::move(answer));
    job->withdrawable = withdrawable == Withdrawable::yes;
    return thread_.post(info.Env(), std::move(job));
  }

  ParameterLayout layout_;
  std::string device_name_;
  DataType state_type_ = DataType::f32;
  std::size_t context_bytes_ = 0, communicator_bytes_ = 0;
  std::unique_ptr<TrainingEngine> engine_;
  std::unique_ptr<Contention> contention_;  // of the engine's device
  PromiseThread thread_;
};

}  // namespace

void register_model(Napi::Env env, Napi::Object exports) { exports.Set("Model", Model::define(env)); }

}  // namespace tinyllama
