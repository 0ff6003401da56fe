// Training speed and memory without data or runner: random tokens through a whole optimizer step.
//   train_bench [--device cpu|cuda] [--precision fp32|bf16] [--model 1.1b|tiny] [--micro-batch N] [--length T] [--threads N] [--accumulate A] [--steps S]
//               [--recompute none|pointwise|gate-up|full] [--graphs on|off] [--kernels on|off]
//               [--contention-sms K --contention-gbs B]
//               [--strategy none|zero2|fsdp|hsdp] [--shard-size S] [--share-gradients on|off] [--gradient-sum fast|fixed-order]
//               [--communicator mpi|nccl|host-staged | --communicator fake --world W --rank r]
// mpi, nccl, host-staged: one of the ranks that a launcher started, as the environment says; rank 0 prints. fake: rank r of W alone: its memory and its
// compute are those of a real one, communication takes no time. Memory is held against the forecast, apart from the driver's bare context.
// With contention, K multiprocessors and B GB/s (read and written) are taken away while the timed steps run, as communication beside them would.
// The last line is JSON. The first step is timed from the start of main: library, weights, plans and all.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "native/core/error.h"
#include "native/core/philox.h"
#include "native/device/cuda/library.h"
#include "native/device/open_device.h"
#include "native/distributed/open_communicator.h"
#include "native/lab/lab_models.h"
#include "native/lab/launched_ranks.h"
#include "native/model/kernel_timing.h"
#include "native/training/memory_plan.h"
#include "native/training/training_engine.h"

using namespace tinyllama;

namespace {

using Clock = std::chrono::steady_clock;
const Clock::time_point process_start = Clock::now();
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Arguments {
  DeviceOptions device{.kind = DeviceKind::cuda, .threads = 2, .compute_type = DataType::bf16};
  std::string model = "1.1b";
  Recompute recompute = Recompute::pointwise;
  bool kernels = false;
  ContentionOptions contention{.most_seconds = 300};
  CommunicatorOptions world{.nonce = "train_bench"};
  Sharding sharding;
  std::string strategy = "none";
  std::int64_t micro_batch = 16, length = 2048, accumulate = 2, steps = 20;
};

[[noreturn]] void misuse(const std::string& what) {
  std::fprintf(stderr, "train_bench: %s\n", what.c_str());
  std::exit(2);
}

// The value's place among the choices.
template <class Choice>
Choice choose(const std::string& option, const std::string& value, const std::vector<std::pair<const char*, Choice>>& choices) {
  std::string all;
  for (const auto& [name, choice] : choices) {
    if (value == name) return choice;
    all += std::string(all.empty() ? "" : ", ") + name;
  }
  misuse(option + " is one of " + all + ", not " + value);
}

// Whether it was one of those that say how ranks work together.
bool read_world_argument(Arguments& arguments, const std::string& name, const std::string& value) {
  if (name == "--world") arguments.world.size = std::stoi(value);
  else if (name == "--rank") arguments.world.rank = std::stoi(value);
  else if (name == "--shard-size") arguments.sharding.shard_size = std::stoi(value);
  else if (name == "--share-gradients")
    arguments.sharding.share_gradients = choose<bool>(name, value, {{"off", false}, {"on", true}});
  else if (name == "--gradient-sum")
    arguments.sharding.fixed_order = choose<bool>(name, value, {{"fast", false}, {"fixed-order", true}});
  else if (name == "--communicator")
    arguments.world.kind = choose<CommunicatorKind>(name, value,
                                                    {{"single", CommunicatorKind::single},
                                                     {"fake", CommunicatorKind::fake},
                                                     {"mpi", CommunicatorKind::mpi},
                                                     {"nccl", CommunicatorKind::nccl},
                                                     {"host-staged", CommunicatorKind::host_staged}});
  else if (name == "--strategy")
    arguments.strategy = value, arguments.sharding.strategy = choose<Strategy>(name, value,
                                                                              {{"none", Strategy::none},
                                                                               {"zero2", Strategy::zero2},
                                                                               {"fsdp", Strategy::fsdp},
                                                                               {"hsdp", Strategy::hsdp}});
  else
    return false;
  return true;
}

// Ranks that a launcher started: which one, and its GPU.
void join_launched(Arguments& arguments) {
  CommunicatorOptions& world = arguments.world;
  if (world.kind == CommunicatorKind::single || world.kind == CommunicatorKind::fake) return;
  const LaunchedRank launched = launched_rank();
  world.rank = launched.rank, world.size = launched.size;
  world.master_addr = launched.master_addr, world.master_port = launched.master_port;
  const auto gpus = static_cast<int>(arguments.device.kind == DeviceKind::cuda ? survey_gpus().gpus.size() : 0);
  if (gpus > 1) arguments.device.ordinal = launched.local_rank % gpus;
}

Arguments read_arguments(int count, char** values) {
  Arguments arguments;
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string name = values[i], value = values[i + 1];
    if (read_world_argument(arguments, name, value)) continue;
    if (name == "--device") arguments.device.kind = value == "cpu" ? DeviceKind::cpu : DeviceKind::cuda;
    else if (name == "--precision") arguments.device.compute_type = value == "fp32" ? DataType::f32 : DataType::bf16;
    else if (name == "--model") arguments.model = value;
    else if (name == "--micro-batch") arguments.micro_batch = std::stoll(value);
    else if (name == "--length") arguments.length = std::stoll(value);
    else if (name == "--accumulate") arguments.accumulate = std::stoll(value);
    else if (name == "--threads") arguments.device.threads = std::stoi(value);
    else if (name == "--steps") arguments.steps = std::stoll(value);
    else if (name == "--contention-sms") arguments.contention.multiprocessors = std::stoi(value);
    else if (name == "--contention-gbs") arguments.contention.gigabytes_per_second = std::stod(value);
    else if (name == "--kernels") arguments.kernels = value == "on";
    else if (name == "--graphs") arguments.device.graphs = value != "off";
    else if (name == "--recompute")
      arguments.recompute = value == "none"      ? Recompute::none
                            : value == "gate-up" ? Recompute::gate_up
                            : value == "full"    ? Recompute::full
                                                 : Recompute::pointwise;
    else misuse("unknown option " + name);
  }
  join_launched(arguments);
  return arguments;
}

LlamaConfig config_of(const std::string& model) {
  const std::optional<LlamaConfig> known = lab_model(model);
  if (!known) misuse("unknown model " + model);
  return *known;
}

// Floating-point operations of a token, forward and backward, by three conventions.
struct FlopsPerToken {
  double causal;         // 6 per parameter in products, attention over what the causal mask leaves
  double full_attention; // the same with the whole T x T
  double litgpt;         // 6 per parameter, the embedding's too, and 12 L D T: lit-gpt's estimate
};

FlopsPerToken flops_of(const LlamaConfig& config, const ParameterLayout& layout, std::int64_t length) {
  const auto parameters = static_cast<double>(layout.count);
  const double in_products = parameters - static_cast<double>(config.vocab_size * config.hidden_size);
  const double attention = static_cast<double>(config.num_hidden_layers * config.query_width() * length);
  return {6 * in_products + 6 * attention, 6 * in_products + 12 * attention, 6 * parameters + 12 * attention};
}

// Random tokens, each target the token that follows.
std::vector<std::int32_t> random_tokens(std::int64_t count, std::uint32_t stream, std::int64_t vocabulary) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const PhiloxCounter words = philox({static_cast<std::uint32_t>(i), stream, 0, 0}, {7, 0});
    ids[i] = static_cast<std::int32_t>(words[0] % static_cast<std::uint32_t>(vocabulary));
  }
  return ids;
}

std::unique_ptr<Contention> start_contention(Device& device, const ContentionOptions& options) {
  if (options.multiprocessors == 0) return nullptr;
  require(!device.in_host_memory(), "contention is of a GPU: --device cuda");
  char error[1024] = "";
  std::unique_ptr<Contention> contention(cuda_library().start_contention(device, options, error, sizeof(error)));
  require(contention != nullptr, error);
  return contention;
}

double gibibytes(double bytes) { return bytes / (1 << 30); }
double gibibytes(std::size_t bytes) { return gibibytes(static_cast<double>(bytes)); }

// What a rank holds on its device, apart from the bare context and from what the communicator took when it was opened.
struct Memory {
  std::size_t context = 0, communicator = 0, peak = 0;
  MemoryPlan forecast;

  std::size_t held() const { return peak - std::min(peak, context + communicator); }
  double ratio() const { return static_cast<double>(held()) / static_cast<double>(forecast.total()); }
  void look(Device& device) { peak = std::max(peak, device.memory_in_use()); }
  void print(Device& device) const {
    std::printf("memory: %.3f GiB held, %.3f forecast (weights %.3f, gradients %.3f, moments %.3f, activations %.3f, the device's own %.3f), ratio %.4f;\n"
                "        beside it %.3f GiB of context, %.3f of the communicator; the device's own is %.3f\n",
                gibibytes(held()), gibibytes(static_cast<double>(forecast.total())), gibibytes(static_cast<double>(forecast.weights)),
                gibibytes(static_cast<double>(forecast.gradients)), gibibytes(static_cast<double>(forecast.moments)),
                gibibytes(static_cast<double>(forecast.activations)), gibibytes(static_cast<double>(forecast.overhead)), ratio(),
                gibibytes(context), gibibytes(communicator), gibibytes(device.overhead()));
  }
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0 : values[values.size() / 2];
}

int run(const Arguments& arguments) {
  const LlamaConfig config = config_of(arguments.model);
  std::unique_ptr<Device> opened = open_device(arguments.device);
  Memory memory;
  memory.context = opened->memory_in_use() - opened->overhead();
  std::unique_ptr<Communicator> world = open_communicator(arguments.world, *opened);
  memory.communicator = opened->memory_in_use() - opened->overhead() - memory.context;
  memory.forecast = plan_training_memory(config, arguments.micro_batch, arguments.length,
                                         {.compute_type = arguments.device.compute_type,
                                          .recompute = arguments.recompute,
                                          .sharding = arguments.sharding,
                                          .world = world->size(),
                                          .gpu = arguments.device.kind == DeviceKind::cuda});
  TrainingEngine engine(std::move(opened), std::move(world), config, {arguments.device, arguments.recompute, arguments.sharding});
  Device* const device = engine.device.get();
  const bool fake = arguments.world.kind == CommunicatorKind::fake, speaks = fake || engine.world->rank() == 0;
  engine.store.initialize(3407);
  const std::int64_t rows = arguments.micro_batch * arguments.length;
  const int size = engine.world->size();
  const auto scale = 1.0f / (static_cast<float>(rows * arguments.accumulate) * static_cast<float>(size));
  std::vector<std::vector<std::int32_t>> tokens;
  for (std::uint32_t i = 0; i < 8; ++i) tokens.push_back(random_tokens(rows + 1, i + 8 * static_cast<std::uint32_t>(engine.world->rank()), config.vocab_size));
  if (speaks) std::printf("%s, %lld parameters\n", device->name().c_str(), static_cast<long long>(engine.store.layout().count));
  if (speaks && size > 1)
    std::printf("%s, strategy %s%s\n", engine.world->name().c_str(), arguments.strategy.c_str(),
                fake ? ": communication takes no time, and other ranks' weights are made up" : "");
  double loss = 0, norm = 0;
  std::vector<double> micro_batches, updates;
  const auto step = [&](std::int64_t number) {
    loss = 0;
    for (std::int64_t i = 0; i < arguments.accumulate; ++i) {
      engine.store.begin_micro_batch({i + 1 == arguments.accumulate, size});
      const Clock::time_point start = Clock::now();
      const auto& ids = tokens[static_cast<std::size_t>((number * arguments.accumulate + i) % 8)];
      const auto size = static_cast<std::size_t>(rows);
      loss += engine.llama.accumulate({{ids.data(), size}, {ids.data() + 1, size}, arguments.micro_batch, arguments.length}, scale).sum;
      micro_batches.push_back(seconds_since(start));
    }
    const Clock::time_point start = Clock::now();
    norm = engine.optimizer.step({.step = number + 1, .learning_rate = 4e-4, .weight_decay = 0.1, .decay = DecayPolicy::all, .clip = 1.0});
    updates.push_back(seconds_since(start));
    loss *= static_cast<double>(scale) * size;
    memory.look(*device);
  };
  step(0);
  const double first = seconds_since(process_start);
  if (speaks) std::printf("step 1: loss %.4f, gradient norm %.4f, %.2f s after the process began\n", loss, norm, first);
  for (std::int64_t i = 1; i < 3; ++i) step(i);
  device->synchronize();
  const std::unique_ptr<Contention> contention = start_contention(*device, arguments.contention);
  micro_batches.clear(), updates.clear();
  std::vector<double> seconds;
  for (std::int64_t i = 3; i < 3 + arguments.steps; ++i) {
    const Clock::time_point start = Clock::now();
    step(i);
    seconds.push_back(seconds_since(start));
  }
  const double contended = contention ? contention->stop() : 0;
  if (!speaks) return 0;
  std::sort(seconds.begin(), seconds.end());
  const double step_seconds = median(seconds);
  const double rate = static_cast<double>(rows * arguments.accumulate) / step_seconds;
  const int ranks = fake ? 1 : size;  // that are there
  const FlopsPerToken flops = flops_of(config, engine.store.layout(), arguments.length);
  constexpr double peak = 989e12;  // bf16, dense, of an H100 or H200 by its datasheet
  if (arguments.kernels) {
    const auto timings = time_kernels(*device, config, arguments.micro_batch, arguments.length, arguments.recompute, 5);
    double sum = 0;
    const auto share = [&](const KernelTiming& timing) {
      return timing.seconds * static_cast<double>(timing.per_step ? timing.calls : timing.calls * arguments.accumulate);
    };
    for (const KernelTiming& timing : timings) sum += share(timing);
    for (const KernelTiming& timing : timings) {
      std::printf("%-26s %9.1f us %8.1f GB/s %8.1f TFLOP/s  %5.1f %% of the step\n", timing.name.c_str(), timing.seconds * 1e6,
                  timing.bytes / timing.seconds / 1e9, timing.operations / timing.seconds / 1e12, 100 * share(timing) / step_seconds);
    }
    std::printf("all operations alone: %.1f ms of a step's %.1f ms\n", sum * 1e3, step_seconds * 1e3);
  }
  memory.print(*device);
  std::printf("{\"device\":\"%s\",\"tokens_per_second\":%.0f,\"mfu_causal\":%.4f,\"mfu_full_attention\":%.4f,\"mfu_litgpt\":%.4f,"
              "\"step_ms\":%.2f,\"fastest_step_ms\":%.2f,\"slowest_step_ms\":%.2f,\"first_step_s\":%.2f,\"memory_gib\":%.2f,\"loss\":%.6f,"
              "\"gradient_norm\":%.6f,\"contention_sms\":%d,\"contention_gbs\":%.1f,\"micro_batch_ms\":%.3f,\"update_ms\":%.3f,"
              "\"world\":%d,\"strategy\":\"%s\",\"communicator\":\"%s\",\"held_gib\":%.4f,\"forecast_gib\":%.4f,\"ratio\":%.4f,"
              "\"context_gib\":%.4f,\"communicator_gib\":%.4f}\n",
              device->name().c_str(), rate * ranks, rate * flops.causal / peak, rate * flops.full_attention / peak, rate * flops.litgpt / peak,
              step_seconds * 1e3, seconds.front() * 1e3, seconds.back() * 1e3, first,
              gibibytes(device->memory_in_use()), loss, norm, arguments.contention.multiprocessors, contended,
              median(micro_batches) * 1e3, median(updates) * 1e3, size, arguments.strategy.c_str(), engine.world->name().c_str(),
              gibibytes(memory.held()), gibibytes(static_cast<double>(memory.forecast.total())), memory.ratio(), gibibytes(memory.context),
              gibibytes(memory.communicator));
  return 0;
}

}  // namespace

int main(int count, char** values) {
  try {
    return run(read_arguments(count, values));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train_bench: %s\n", error.what());
    return 1;
  }
}
