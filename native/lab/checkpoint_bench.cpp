// What saving and loading a training state costs: how long training waits for a snapshot, how long the files take behind it, and how fast they load again.
//   checkpoint_bench [--device cpu|cuda] [--model 1.1b|tiny] [--folder PATH] [--threads N] [--rounds N] [--check on|off]
// Each round: snapshot, zeros into the device's memory while the files are written, load. The first has nothing allocated; later ones find memory of
// the round before. With --check the loaded state must have the digests of the saved one. The last line is JSON.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "native/checkpoint/sha256.h"
#include "native/checkpoint/state_reader.h"
#include "native/checkpoint/state_writer.h"
#include "native/core/error.h"
#include "native/device/open_device.h"
#include "native/lab/lab_models.h"
#include "native/model/config.h"

using namespace tinyllama;

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Arguments {
  DeviceOptions device{.kind = DeviceKind::cuda, .threads = 2, .compute_type = DataType::bf16};
  std::string model = "1.1b", folder = "checkpoint_bench";
  int threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency() / 2, 1u, 8u));
  int rounds = 2;
  bool check = true;
};

[[noreturn]] void misuse(const std::string& what) {
  std::fprintf(stderr, "checkpoint_bench: %s\n", what.c_str());
  std::exit(2);
}

Arguments read_arguments(int count, char** values) {
  Arguments arguments;
  for (int i = 1; i + 1 < count; i += 2) {
    const std::string name = values[i], value = values[i + 1];
    if (name == "--device") arguments.device.kind = value == "cpu" ? DeviceKind::cpu : DeviceKind::cuda;
    else if (name == "--model") arguments.model = value;
    else if (name == "--folder") arguments.folder = value;
    else if (name == "--threads") arguments.threads = std::stoi(value);
    else if (name == "--rounds") arguments.rounds = std::stoi(value);
    else if (name == "--check") arguments.check = value != "off";
    else misuse("unknown option " + name);
  }
  if (arguments.device.kind == DeviceKind::cpu) arguments.device.compute_type = DataType::f32;
  return arguments;
}

LlamaConfig config_of(const std::string& model) {
  const std::optional<LlamaConfig> known = lab_model(model);
  if (!known) misuse("unknown model " + model);
  return *known;
}

// Weights and moments on the device.
struct State {
  State(Device& device, std::int64_t count) : device(device), count(count) {
    for (const StateKind kind : {StateKind::weights, StateKind::first_moment, StateKind::second_moment}) {
      buffers.push_back(device.allocate(static_cast<std::size_t>(count) * sizeof(float)));
      held.push_back({{kind, 0, count}, DataType::f32, buffers.back()->data()});
    }
  }
  void fill(std::uint64_t seed) {
    for (std::size_t kind = 0; kind < held.size(); ++kind) device.fill_normal(static_cast<float*>(held[kind].data), count, seed + kind, 0, 1.0f);
  }
  void clear() {
    for (const HeldRange& range : held) device.fill_zero(range.data, static_cast<std::size_t>(range.bytes()));
  }
  std::shared_ptr<MemorySnapshot> snapshot() const {
    std::vector<MemoryRange> ranges;
    for (const HeldRange& range : held) ranges.push_back({range.data, static_cast<std::size_t>(range.bytes())});
    return device.snapshot(ranges);
  }
  void take_in(const ElementRange& elements, const void* values) {
    auto* home = static_cast<float*>(held[static_cast<std::size_t>(elements.kind)].data);
    device.copy_in(home + elements.offset, values, static_cast<std::size_t>(elements.count) * sizeof(float));
    device.synchronize();
  }
  Device& device;
  std::int64_t count;
  std::vector<std::unique_ptr<Buffer>> buffers;
  std::vector<HeldRange> held;
};

struct Round {
  double issue, stall, write, load;
  const char* place;
};

class Bench {
 public:
  explicit Bench(const Arguments& arguments)
      : arguments_(arguments), device_(open_device(arguments.device)), layout_(parameter_layout(config_of(arguments.model))), state_(*device_, layout_.count) {
    std::filesystem::create_directories(arguments_.folder);
  }

  Round round(std::uint64_t seed) {
    Round result{};
    state_.fill(seed);
    device_->synchronize();
    const Clock::time_point start = Clock::now();
    std::shared_ptr<MemorySnapshot> snapshot = state_.snapshot();
    result.issue = seconds_since(start);
    device_->synchronize();
    result.stall = seconds_since(start);
    result.place = snapshot->place() == MemorySnapshot::Place::device ? "device" : snapshot->place() == MemorySnapshot::Place::host ? "host" : "live";
    const bool is_copy = snapshot->place() != MemorySnapshot::Place::live;
    const Clock::time_point writing = Clock::now();
    StateWriter writer(device_, std::move(snapshot), files(arguments_.folder), arguments_.threads);
    if (is_copy) state_.clear();  // training goes on
    const std::vector<WrittenFile> written = writer.wait();
    result.write = seconds_since(writing);
    state_.clear();
    device_->synchronize();
    const Clock::time_point loading = Clock::now();
    load(written);
    result.load = seconds_since(loading);
    if (arguments_.check) check(written);
    return result;
  }

  double gigabytes() const { return 3.0 * static_cast<double>(layout_.count) * sizeof(float) / 1e9; }
  std::string device_name() const { return device_->name(); }

 private:
  std::vector<ShardFile> files(const std::string& folder) const {
    return {plan_shard_file(folder + "/weights.safetensors", layout_, state_.held, {StateKind::weights}),
            plan_shard_file(folder + "/optimizer.safetensors", layout_, state_.held, {StateKind::first_moment, StateKind::second_moment})};
  }

  void load(const std::vector<WrittenFile>& written) {
    const std::vector<ShardFile> planned = files(arguments_.folder);
    std::vector<StoredFile> stored;
    std::vector<StoredRange> ranges;
    for (std::size_t file = 0; file < planned.size(); ++file) {
      stored.push_back({planned[file].path, planned[file].bytes, static_cast<std::int64_t>(planned[file].header.size()), written[file].pieces});
      for (const FileSection& section : planned[file].sections) ranges.push_back({file, section.file_offset, section.elements, section.type});
    }
    std::vector<WantedRange> wanted;
    for (const HeldRange& range : state_.held) wanted.push_back({range.elements, range.type});
    const int threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    read_state(*device_, stored, ranges, wanted, threads, [&](const ElementRange& elements, const void* values) { state_.take_in(elements, values); });
  }

  // What was loaded, written once more, has the same digests.
  void check(const std::vector<WrittenFile>& written) {
    const std::string again = arguments_.folder + "/again";
    std::filesystem::create_directories(again);
    StateWriter writer(device_, state_.snapshot(), files(again), arguments_.threads);
    const std::vector<WrittenFile>& loaded = writer.wait();
    for (std::size_t file = 0; file < written.size(); ++file)
      require(loaded[file].pieces == written[file].pieces, written[file].path + " does not hold what was saved");
    std::filesystem::remove_all(again);
  }

  Arguments arguments_;
  std::shared_ptr<Device> device_;
  ParameterLayout layout_;
  State state_;
};

int run(const Arguments& arguments) {
  Bench bench(arguments);
  std::printf("%s, %.2f GB of state, %d threads, sha256 by %s\n", bench.device_name().c_str(), bench.gigabytes(), arguments.threads, sha256_implementation());
  Round last{};
  for (int i = 0; i < arguments.rounds; ++i) {
    last = bench.round(1000 * static_cast<std::uint64_t>(i) + 1);
    std::printf("round %d: snapshot in the %s's memory, issued in %.1f ms, done in %.1f ms; written in %.2f s (%.2f GB/s), loaded in %.2f s (%.2f GB/s)\n",
                i + 1, last.place, last.issue * 1e3, last.stall * 1e3, last.write, bench.gigabytes() / last.write, last.load,
                bench.gigabytes() / last.load);
    std::fflush(stdout);
  }
  for (const char* file : {"/weights.safetensors", "/optimizer.safetensors"}) std::filesystem::remove(arguments.folder + file);
  std::printf("{\"device\":\"%s\",\"state_gb\":%.3f,\"place\":\"%s\",\"issue_ms\":%.2f,\"stall_ms\":%.2f,\"write_s\":%.3f,\"write_gb_per_s\":%.3f,"
              "\"load_s\":%.3f,\"load_gb_per_s\":%.3f,\"threads\":%d,\"checked\":%s}\n",
              bench.device_name().c_str(), bench.gigabytes(), last.place, last.issue * 1e3, last.stall * 1e3, last.write, bench.gigabytes() / last.write,
              last.load, bench.gigabytes() / last.load, arguments.threads, arguments.check ? "true" : "false");
  return 0;
}

}  // namespace

int main(int count, char** values) {
  try {
    return run(read_arguments(count, values));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "checkpoint_bench: %s\n", error.what());
    return 1;
  }
}
