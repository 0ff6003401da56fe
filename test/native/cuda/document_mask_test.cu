// Packed documents on the GPU: the Device's attention with first keys against fp64, and a model whose packed documents must have the losses and
// gradients that each has alone, in fp32 also those of the CPU, with records of the step that stay right while masked and causal batches take turns.
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "native/device/cpu/cpu_device.h"
#include "native/device/cuda/library.h"
#include "native/distributed/single_communicator.h"
#include "native/training/training_engine.h"
#include "test/native/cuda/attention_reference.h"
#include "test/native/cuda/gpu_check.h"

namespace tinyllama {
namespace {

using check::expect;
using FirstKeys = std::vector<std::int32_t>;

std::unique_ptr<Device> open_gpu(DataType type) {
  char error[512] = "";
  CudaOptions options;
  options.compute_type = type;
  std::unique_ptr<Device> device(tinyllama_cuda_library()->open(options, error, sizeof error));
  if (!device) throw Error(error);
  return device;
}

const char* name_of(DataType type) { return type == DataType::f32 ? "f32" : "bf16"; }

// --- the Device's operations

void attention_of(DataType type, const AttentionShape& s, std::uint64_t seed) {
  const bool bf16 = type == DataType::bf16;
  const check::AttentionProblem problem = check::make_problem(s, check::InputKind::normal, true, bf16, seed);
  const check::AttentionResult want = check::attention_reference(problem, false), naive = bf16 ? check::attention_reference(problem, true) : want;
  const std::int64_t rows = s.batch * s.length, width = (s.heads + 2 * s.kv_heads) * s.head_size, out_width = s.heads * s.head_size;
  const auto device = open_gpu(type);
  check::DeviceValues qkv(problem.qkv, type), dout(problem.dout, type), out(rows * out_width, type), dqkv(rows * width, type);
  check::DeviceValues lse(s.batch * s.heads * s.length, DataType::f32);
  const std::size_t bytes = problem.first_keys.size() * sizeof(std::int32_t);
  const std::unique_ptr<Buffer> first_keys = device->allocate(bytes);
  device->copy_in(first_keys->data(), problem.first_keys.data(), bytes);
  const auto* first = static_cast<const std::int32_t*>(first_keys->data());
  device->attention_forward(out.view(rows, out_width), lse.f32(), qkv.view(rows, width), s, first);
  device->attention_backward(dqkv.view(rows, width), dout.view(rows, out_width), qkv.view(rows, width), out.view(rows, out_width), lse.f32(), s, first);
  device->synchronize();

  const std::string name = std::string("attention ") + name_of(type) + " T" + std::to_string(s.length) + " S" + std::to_string(s.head_size);
  const auto compare = [&](const char* what, const check::Values& got, const check::Values& exact, const check::Values& plain, std::int64_t columns) {
    const check::ErrorSize error = check::error_of(got, exact, columns, 0, columns), allowed = check::error_of(plain, exact, columns, 0, columns);
    const double size = check::error_of(exact, exact, columns, 0, columns).reference_rms();
    const double limit = bf16 ? 2 * allowed.rms() + 1e-4 * size : 3e-6 * (1 + size);
    std::printf("%-28s %-5s rms error %.2e, limit %.2e\n", name.c_str(), what, error.rms(), limit);
    expect(error.rms() <= limit, name + " " + what);
  };
  compare("out", out.get(), want.out, naive.out, out_width);
  compare("dqkv", dqkv.get(), want.dqkv, naive.dqkv, width);
}

// --- a model

LlamaConfig config_of() {
  LlamaConfig config;
  config.vocab_size = 512;
  config.hidden_size = 256;
  config.intermediate_size = 512;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 64;
  return config;
}

constexpr std::int64_t batch_size = 2, length = 320;

struct Ids {
  std::vector<std::int32_t> tokens, targets;
  FirstKeys first_keys;
};

// `starts` of the documents of one sequence, of 0 first; the other sequence has them reversed.
Ids ids_of(const std::vector<std::int64_t>& starts) {
  std::mt19937_64 random(5);
  Ids ids;
  for (std::int64_t i = 0; i < batch_size * length; ++i) ids.tokens.push_back(static_cast<std::int32_t>(random() % 512));
  for (std::int64_t i = 0; i < batch_size * length; ++i) ids.targets.push_back(static_cast<std::int32_t>(random() % 512));
  for (const bool reversed : {false, true}) {
    FirstKeys keys;
    std::int64_t first = 0;
    for (std::int64_t t = 0; t < length; ++t) {
      for (const std::int64_t start : starts)
        if (t == (reversed ? length - start : start)) first = t;
      keys.push_back(static_cast<std::int32_t>(first));
    }
    ids.first_keys.insert(ids.first_keys.end(), keys.begin(), keys.end());
  }
  return ids;
}

TokenBatch masked(const Ids& ids) { return {ids.tokens, ids.targets, batch_size, length, ids.first_keys}; }
TokenBatch causal(const Ids& ids) { return {ids.tokens, ids.targets, batch_size, length}; }

TrainingEngine engine_of(std::unique_ptr<Device> device, Recompute level) {
  std::unique_ptr<Communicator> world = make_single_communicator(*device);
  return TrainingEngine(std::move(device), std::move(world), config_of(), {{}, level, {}});
}

// Weights large enough for attention to matter.
void fill(TrainingEngine& engine) {
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal;
  const ParameterLayout& layout = engine.llama.layout();
  std::vector<float> weights(static_cast<std::size_t>(layout.count));
  for (const Parameter& parameter : layout.parameters)
    for (std::int64_t i = 0; i < parameter.count; ++i)
      weights[static_cast<std::size_t>(parameter.offset + i)] = parameter.role == ParameterRole::gain ? 1.f + 0.1f * normal(random) : 0.06f * normal(random);
  engine.store.weights().write(0, layout.count, weights.data());
  engine.store.weights_written();
}

std::vector<float> take_gradients(TrainingEngine& engine) {
  std::vector<float> values(static_cast<std::size_t>(engine.llama.layout().count));
  engine.store.read_gradients(0, engine.llama.layout().count, values.data());
  engine.store.clear_gradients();
  return values;
}

// The root mean square of a - b, as a share of that of b.
double distance(std::span<const float> a, std::span<const float> b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    difference += std::pow(static_cast<double>(a[i]) - b[i], 2), size += std::pow(static_cast<double>(b[i]), 2);
  return std::sqrt(difference / size);
}

struct Results {
  std::vector<float> log_probabilities, gradients;
};

Results run(TrainingEngine& engine, const TokenBatch& batch) {
  Results results{engine.llama.score(batch).log_probabilities, {}};
  engine.llama.accumulate(batch, 1.f / static_cast<float>(batch_size * length));
  results.gradients = take_gradients(engine);
  return results;
}

// Each document as a batch of its own.
Results run_alone(TrainingEngine& engine, const Ids& ids) {
  Results results;
  for (std::size_t begin = 0, end = 0; begin < ids.tokens.size(); begin = end) {
    for (end = begin + 1; end % length != 0 && ids.first_keys[end] == ids.first_keys[begin];) ++end;
    const auto cut = [&](const std::vector<std::int32_t>& from) { return std::span(from).subspan(begin, end - begin); };
    const TokenBatch document{cut(ids.tokens), cut(ids.targets), 1, static_cast<std::int64_t>(end - begin)};
    const std::vector<float> scores = engine.llama.score(document).log_probabilities;
    results.log_probabilities.insert(results.log_probabilities.end(), scores.begin(), scores.end());
    engine.llama.accumulate(document, 1.f / static_cast<float>(batch_size * length));
  }
  results.gradients = take_gradients(engine);
  return results;
}

// `limit` of each distance, as a share of what seeing the other documents makes of it.
void compare(const std::string& name, const Results& got, const Results& want, const Results& seeing, double limit) {
  const auto part = [&](const char* what, const std::vector<float>& a, const std::vector<float>& b, const std::vector<float>& other) {
    const double off = distance(a, b), seen = distance(other, b);
    std::printf("%-28s %-18s off %.2e; without a mask %.2e\n", name.c_str(), what, off, seen);
    expect(off <= limit * seen && seen > 0.01, name + " " + what);
  };
  part("log probabilities", got.log_probabilities, want.log_probabilities, seeing.log_probabilities);
  part("gradients", got.gradients, want.gradients, seeing.gradients);
}

void documents_alone(std::unique_ptr<Device> device, const std::string& name, Recompute level, double limit, const Results* cpu) {
  const Ids ids = ids_of({0, 1, 90, 91, 200, 263});
  TrainingEngine engine = engine_of(std::move(device), level);
  fill(engine);
  const Results packed = run(engine, masked(ids)), seeing = run(engine, causal(ids));
  compare(name + ", alone", packed, run_alone(engine, ids), seeing, limit);
  if (cpu) compare(name + ", CPU", packed, *cpu, seeing, limit);
}

// The first call of a shape runs as it is, the second is recorded, the third repeats the record. Other first keys under a record are read anew.
void records(std::unique_ptr<Device> device, const std::string& name) {
  const Ids one = ids_of({0, 1, 90, 91, 200, 263}), other = ids_of({0, 150});
  TrainingEngine engine = engine_of(std::move(device), Recompute::none);
  fill(engine);
  const auto step = [&](const TokenBatch& batch) {
    std::vector<float> all{static_cast<float>(engine.llama.accumulate(batch, 1.f).sum)};
    const std::vector<float> gradients = take_gradients(engine);
    all.insert(all.end(), gradients.begin(), gradients.end());
    return all;
  };
  const std::vector<float> first_one = step(masked(one)), first_causal = step(causal(one)), first_other = step(masked(other));
  expect(first_one != first_causal && first_one != first_other, name + ": first keys change the result");
  for (int round = 0; round < 3; ++round) {
    expect(step(causal(one)) == first_causal, name + ": a causal step's bits, round " + std::to_string(round));
    expect(step(masked(one)) == first_one, name + ": a masked step's bits, round " + std::to_string(round));
    expect(step(masked(other)) == first_other, name + ": another mask's bits, round " + std::to_string(round));
  }
}

void run_all() {
  attention_of(DataType::bf16, {2, 300, 4, 2, 64}, 1);
  attention_of(DataType::bf16, {1, 1024, 8, 1, 64}, 2);
  attention_of(DataType::bf16, {1, 257, 4, 4, 128}, 3);
  attention_of(DataType::f32, {2, 200, 4, 2, 64}, 4);

  const Ids ids = ids_of({0, 1, 90, 91, 200, 263});
  TrainingEngine on_processor = engine_of(make_cpu_device(4), Recompute::none);
  fill(on_processor);
  const Results cpu = run(on_processor, masked(ids));
  documents_alone(make_cpu_device(4), "CPU", Recompute::none, 1e-4, nullptr);
  for (const DataType type : {DataType::f32, DataType::bf16}) {
    const double limit = type == DataType::f32 ? 1e-3 : 0.15;
    for (const Recompute level : {Recompute::none, Recompute::full})
      documents_alone(open_gpu(type), std::string(name_of(type)) + (level == Recompute::full ? ", recomputed" : ""), level, limit, &cpu);
    records(open_gpu(type), name_of(type));
  }
}

}  // namespace
}  // namespace tinyllama

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    tinyllama::run_all();
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
  return tinyllama::check::report("document mask");
}
