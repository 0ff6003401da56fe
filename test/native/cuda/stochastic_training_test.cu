// A model with bf16 weights and moments on the GPU beside one on the CPU: from the same gradients both make the same bits of weights and moments, a
// pass reads what the step before left (its gains too), and recorded steps are those that are not.
// cuda_stochastic_training_test
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "native/device/cpu/cpu_device.h"
#include "native/device/cuda/library.h"
#include "native/distributed/single_communicator.h"
#include "native/training/training_engine.h"
#include "test/native/cuda/gpu_check.h"

namespace tinyllama {
namespace {

using check::expect;
using Values = std::vector<float>;

constexpr std::int64_t batch_size = 2, length = 96, vocabulary = 512;

std::unique_ptr<Device> open_gpu(DataType type, bool graphs) {
  char error[512] = "";
  CudaOptions options;
  options.compute_type = type;
  options.graphs = graphs;
  std::unique_ptr<Device> device(tinyllama_cuda_library()->open(options, error, sizeof error));
  if (!device) throw Error(error);
  return device;
}

LlamaConfig config_of() {
  LlamaConfig config;
  config.vocab_size = vocabulary;
  config.hidden_size = 136;
  config.intermediate_size = 344;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.head_dim = 64;
  return config;
}

TrainingEngine engine_of(std::unique_ptr<Device> device) {
  std::unique_ptr<Communicator> world = make_single_communicator(*device);
  return TrainingEngine(std::move(device), std::move(world), config_of(), {{}, Recompute::none, {}, DataType::bf16});
}

struct Ids {
  std::vector<std::int32_t> tokens, targets;
  TokenBatch view() const { return {tokens, targets, batch_size, length}; }
};

Ids ids_of(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Ids ids;
  for (std::int64_t i = 0; i < batch_size * length; ++i) {
    ids.tokens.push_back(static_cast<std::int32_t>(random() % vocabulary));
    ids.targets.push_back(static_cast<std::int32_t>(random() % vocabulary));
  }
  return ids;
}

Values read(TrainingEngine& engine, ShardedBuffer& buffer) {
  Values values(static_cast<std::size_t>(engine.store.layout().count));
  buffer.read(0, engine.store.layout().count, values.data());
  return values;
}

std::vector<Values> state_of(TrainingEngine& engine) {
  return {read(engine, engine.store.weights()), read(engine, engine.optimizer.first_moment()), read(engine, engine.optimizer.second_moment())};
}

// Without clipping, whose norm the devices sum in different orders.
AdamWOptions step_options(std::int64_t step) {
  return {.step = step, .learning_rate = 3e-3, .weight_decay = 0.1, .decay = DecayPolicy::matrices, .clip = 0, .seed = 77};
}

double accumulate(TrainingEngine& engine, const Ids& ids) {
  return engine.llama.accumulate(ids.view(), 1.f / static_cast<float>(batch_size * length)).sum;
}

void beside_the_cpu(DataType type, const std::string& name) {
  TrainingEngine gpu = engine_of(open_gpu(type, true)), cpu = engine_of(make_cpu_device(2));
  gpu.store.initialize(17);
  const std::int64_t count = gpu.store.layout().count;
  // Normal values differ in last bits between CPU and GPU, which rounding may turn into whole ones.
  const Values initial = read(gpu, gpu.store.weights());
  cpu.store.weights().write(0, count, initial.data());
  cpu.store.weights_written();
  double first = 0, last = 0;
  for (std::int64_t step = 1; step <= 6; ++step) {
    const double loss = accumulate(gpu, ids_of(1)), own = accumulate(cpu, ids_of(1));
    expect(std::abs(loss - own) <= (type == DataType::f32 ? 1e-5 : 1e-2) * own, name + ": loss " + std::to_string(loss) + ", CPU " + std::to_string(own));
    if (step == 1) first = loss;
    last = loss;
    Values gradients(static_cast<std::size_t>(count));
    gpu.store.read_gradients(0, count, gradients.data());
    cpu.store.write_gradients(0, count, gradients.data());
    gpu.optimizer.step(step_options(step));
    cpu.optimizer.step(step_options(step));
    expect(state_of(gpu) == state_of(cpu), name + ": other bits than the CPU's after step " + std::to_string(step));
  }
  expect(last < 0.98 * first, name + ": loss from " + std::to_string(first) + " to " + std::to_string(last));
  // A model that is given these weights from outside computes the same: what passes read, the widened gains too, follows every step.
  TrainingEngine fresh = engine_of(open_gpu(type, true));
  const Values weights = read(gpu, gpu.store.weights());
  fresh.store.weights().write(0, count, weights.data());
  fresh.store.weights_written();
  expect(gpu.llama.score(ids_of(2).view()).log_probabilities == fresh.llama.score(ids_of(2).view()).log_probabilities, name + ": scores of stale weights");
}

void recorded(DataType type, const std::string& name) {
  TrainingEngine with = engine_of(open_gpu(type, true)), without = engine_of(open_gpu(type, false));
  for (TrainingEngine* engine : {&with, &without}) engine->store.initialize(17);
  for (std::int64_t step = 1; step <= 6; ++step) {
    const Ids ids = ids_of(static_cast<std::uint64_t>(step));
    expect(accumulate(with, ids) == accumulate(without, ids), name + ": records change the loss of step " + std::to_string(step));
    with.optimizer.step(step_options(step));
    without.optimizer.step(step_options(step));
  }
  expect(state_of(with) == state_of(without), name + ": records change weights or moments");
  // Weights written from outside while there is a record: the next pass reads them.
  const Values initial = read(without, without.store.weights());
  const std::int64_t count = with.store.layout().count;
  Values other = initial;
  for (float& value : other) value *= 0.5f;
  for (TrainingEngine* engine : {&with, &without}) {
    engine->store.weights().write(0, count, other.data());
    engine->store.weights_written();
  }
  expect(accumulate(with, ids_of(9)) == accumulate(without, ids_of(9)), name + ": a record reads weights of before they were written");
}

}  // namespace
}  // namespace tinyllama

int main() {
  using namespace tinyllama;
  try {
    for (const DataType type : {DataType::f32, DataType::bf16}) {
      const std::string name = type == DataType::f32 ? "fp32 compute" : "bf16 compute";
      beside_the_cpu(type, name);
      recorded(type, name);
    }
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
  return check::report("cuda stochastic training");
}
