// NCCL between real GPUs, through the same door as training: a world of 1, and of 2 where there are two GPUs, each rank a process of its own.
//   nccl_test                          all of it; skipped (77), with the reason, where there is no GPU
//   nccl_test --rank R SIZE PORT WHAT FOLDER     one rank
// Besides what collectives give: the edges between compute and communication, without any wait on the host; how fast they are beside compute and
// alone; and who is named when one rank stops, dies, or issues another collective.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "native/core/error.h"
#include "native/device/open_device.h"
#include "native/distributed/open_communicator.h"
#include "test/native/device_check.h"
#include "test/native/distributed/rank_values.h"

using namespace tinyllama;
using check::expect;
using check::same_bits;
using check::held;
using check::summed;
using check::values;

namespace {

using Floats = std::vector<float>;
using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Memory {
 public:
  Memory(Device& device, std::int64_t count) : device_(device), count_(count), buffer_(device.allocate(static_cast<std::size_t>(count) * 4 + 4)) {}
  float* data() const { return static_cast<float*>(buffer_->data()); }
  void set(const Floats& from, std::int64_t first = 0) const { device_.copy_in(data() + first, from.data(), from.size() * 4), device_.synchronize(); }
  Floats get() const { return get(0, count_); }
  Floats get(std::int64_t first, std::int64_t count) const {
    Floats result(static_cast<std::size_t>(count));
    device_.copy_out(result.data(), data() + first, result.size() * 4);
    device_.synchronize();
    return result;
  }

 private:
  Device& device_;
  std::int64_t count_;
  std::unique_ptr<Buffer> buffer_;
};

// Sums of two are the same in any order; of more, NCCL's order is its own.
void expect_sum(const Floats& got, const Floats& want, int size, const std::string& what) {
  bool close = got.size() == want.size();
  for (std::size_t i = 0; close && i < got.size(); ++i) close = std::abs(got[i] - want[i]) <= 1e-6f * static_cast<float>(size);
  expect(size <= 2 ? same_bits(got, want) : close, what);
}

void check_one(Device& device, Communicator& ranks, std::int64_t count, std::uint64_t number) {
  const int size = ranks.size(), rank = ranks.rank();
  const std::int64_t all = count * size, first = rank * count;
  const Memory whole(device, all), out(device, all), part(device, count);
  const std::string what = ranks.name() + " of " + std::to_string(size) + ", " + std::to_string(count) + " values: ";
  const Floats own = held(rank, all, number);
  Floats parts, blocks;
  for (int r = 0; r < size; ++r) {
    const Floats theirs = held(r, all, number);
    parts.insert(parts.end(), theirs.begin(), theirs.begin() + count);
    blocks.insert(blocks.end(), theirs.begin() + first, theirs.begin() + first + count);
  }
  const Floats sum = summed(size, all, number);
  whole.set(own);
  ranks.wait(ranks.all_gather(out.data(), whole.data(), static_cast<std::size_t>(count) * 4, {.group = 1}));
  expect(same_bits(out.get(), parts), what + "all-gather");
  ranks.wait(ranks.all_to_all(out.data(), whole.data(), static_cast<std::size_t>(count) * 4, {.group = 2}));
  expect(same_bits(out.get(), blocks), what + "all-to-all");
  ranks.wait(ranks.reduce_scatter(part.data(), whole.data(), count, {.group = 3}));
  expect_sum(part.get(), Floats(sum.begin() + first, sum.begin() + first + count), size, what + "reduce-scatter");
  ranks.wait(ranks.reduce_scatter(whole.data() + first, whole.data(), count, {.group = 4}));
  expect(same_bits(whole.get(first, count), part.get()), what + "reduce-scatter in place");
  whole.set(own);
  ranks.wait(ranks.all_reduce(whole.data(), all, {}));
  expect_sum(whole.get(), sum, size, what + "all-reduce");
  whole.set(Floats(own.begin(), own.begin() + count), first);
  ranks.wait(ranks.all_gather(whole.data(), whole.data() + first, static_cast<std::size_t>(count) * 4, {}));
  expect(same_bits(whole.get(), parts), what + "all-gather in place");
}

void check_exchange(Communicator& ranks) {
  for (const std::size_t bytes : {1, 7, 4096}) {
    std::vector<std::uint8_t> own(bytes, static_cast<std::uint8_t>(ranks.rank() + 3)), all(bytes * static_cast<std::size_t>(ranks.size()));
    ranks.exchange(all.data(), own.data(), bytes);
    for (std::size_t i = 0; i < all.size(); ++i) expect(all[i] == i / bytes + 3, "exchange of " + std::to_string(bytes) + " bytes");
  }
}

void check_split(Device& device, Communicator& ranks) {
  std::vector<int> colours;
  for (int r = 0; r < ranks.size(); ++r) colours.push_back(r % 2);
  const auto like = ranks.split(colours);
  expect(like->rank() == ranks.rank() / 2 && like->size() == (ranks.size() + 1 - ranks.rank() % 2) / 2, "split by parity");
  check_one(device, *like, 1000, 77 + static_cast<std::uint64_t>(ranks.rank() % 2) * 1000);
  const auto again = ranks.split(std::vector<int>(static_cast<std::size_t>(ranks.size()), 0));
  check_one(device, *again, 33, 5);
}

// A long product writes what is gathered, and what was gathered is used and its source written anew at once, with no wait on the host: a missing edge
// shows as another round's values, or as none.
void check_edges(Device& device, Communicator& ranks) {
  constexpr std::int64_t side = 2048, rounds = 12;
  const std::int64_t count = side * side;
  const Memory a(device, count), b(device, count), part(device, count), sum(device, count), out(device, count * ranks.size());
  const Memory kept(device, rounds * 2 * ranks.size());
  // b is the identity times the round's number: the product of a and b is known.
  Floats ones(static_cast<std::size_t>(count), 1.0f);
  a.set(ones);
  std::vector<std::unique_ptr<Memory>> scales;
  for (std::int64_t round = 0; round < rounds; ++round) {
    Floats scale(static_cast<std::size_t>(count), 0.0f);
    for (std::int64_t i = 0; i < side; ++i) scale[static_cast<std::size_t>(i * side + i)] = static_cast<float>(round + 1 + 16 * ranks.rank());
    scales.push_back(std::make_unique<Memory>(device, count));
    scales.back()->set(scale);
  }
  for (std::int64_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < 4; ++i)  // the last one counts; the others make it late
      device.matmul(matrix(part.data(), side, side), matrix(a.data(), side, side), Transpose::no, matrix(scales[static_cast<std::size_t>(round)]->data(), side, side), Transpose::no, false);
    const auto gathered = ranks.all_gather(out.data(), part.data(), static_cast<std::size_t>(count) * 4, {.group = static_cast<int>(round)});
    ranks.wait(gathered);
    for (int r = 0; r < ranks.size(); ++r) {
      device.copy(kept.data() + (round * ranks.size() + r) * 2, out.data() + r * count, 4);
      device.copy(kept.data() + (round * ranks.size() + r) * 2 + 1, out.data() + (r + 1) * count - 1, 4);
    }
    device.fill_zero(part.data(), static_cast<std::size_t>(count) * 4);
  }
  const Floats got = kept.get();
  for (std::int64_t round = 0; round < rounds; ++round)
    for (int r = 0; r < ranks.size(); ++r)
      for (int end = 0; end < 2; ++end)
        expect(got[static_cast<std::size_t>((round * ranks.size() + r) * 2 + end)] == static_cast<float>(round + 1 + 16 * r),
               "edges: round " + std::to_string(round) + ", part of rank " + std::to_string(r) + ": " + std::to_string(got[static_cast<std::size_t>((round * ranks.size() + r) * 2 + end)]));
}

// More than the communicator holds under way: the host waits, tickets of long ago are over.
void check_many(Device& device, Communicator& ranks) {
  const Memory values(device, 1024);
  values.set(Floats(1024, 0.0f));
  Communicator::Ticket first = -1, last = -1;
  for (int i = 0; i < 1500; ++i) {
    last = ranks.all_reduce(values.data(), 1024, {.group = i});
    if (first < 0) first = last;
  }
  ranks.wait(first);
  ranks.wait(last);
  device.synchronize();
  expect(ranks.progress(first) == Progress::over && ranks.progress(last) == Progress::over, "all of many are over");
}

double median_of(int times, const std::function<void()>& act) {
  std::vector<double> seconds;
  for (int i = 0; i < times; ++i) {
    const Clock::time_point start = Clock::now();
    act();
    seconds.push_back(seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

// Of one block of TinyLlama-1.1B: 88 MB of bf16 weights gathered, 176 MB of fp32 gradients scattered; bus bandwidth as nccl-tests define it.
void time_it(Device& device, Communicator& ranks) {
  const std::int64_t block = 44'040'192;
  const int size = ranks.size();
  const Memory whole(device, block), part(device, block / size);
  const auto gather = [&] { return ranks.all_gather(whole.data(), part.data(), static_cast<std::size_t>(block) * 2 / static_cast<std::size_t>(size), {}); };
  const auto scatter = [&] { return ranks.reduce_scatter(part.data(), whole.data(), block / size, {}); };
  const auto timed = [&](const auto& issue) {
    issue();
    return median_of(20, [&] {
      ranks.wait(issue());
      device.synchronize();
    });
  };
  constexpr std::int64_t side = 8192;
  const auto bytes = static_cast<std::size_t>(side * side) * 2;
  const auto a = device.allocate(bytes), b = device.allocate(bytes), c = device.allocate(bytes);
  const Memory random(device, side * side);
  device.fill_normal(random.data(), side * side, 1, 0, 1.0f);
  device.round_weights(a->data(), random.data(), side * side);
  device.round_weights(b->data(), random.data(), side * side);
  const auto product = [&] {
    for (int i = 0; i < 4; ++i)
      device.matmul(matrix(c->data(), DataType::bf16, side, side), matrix(a->data(), DataType::bf16, side, side), Transpose::no,
                    matrix(b->data(), DataType::bf16, side, side), Transpose::yes, false);
  };
  const double gathering = timed(gather), scattering = timed(scatter);
  product();
  device.synchronize();
  const double computing = median_of(10, [&] { product(), device.synchronize(); });
  const double both = median_of(10, [&] {
    gather();
    const auto last = scatter();
    product();
    ranks.wait(last);
    device.synchronize();
  });
  if (ranks.rank() != 0) return;
  const double share = static_cast<double>(size - 1) / size;
  std::printf("%s, %d ranks\n  all-gather 88 MB        %8.1f us  bus %6.1f GB/s\n  reduce-scatter 176 MB   %8.1f us  bus %6.1f GB/s\n", ranks.name().c_str(), size,
              gathering * 1e6, 2.0 * static_cast<double>(block) * share / gathering / 1e9, scattering * 1e6, 4.0 * static_cast<double>(block) * share / scattering / 1e9);
  std::printf("  4 products of 8192^3    %8.1f us  %6.1f TFLOP/s\n  all three side by side  %8.1f us  %.2f of one after the other\n", computing * 1e6,
              8.0 * std::pow(side, 3) / computing / 1e12, both * 1e6, both / (gathering + scattering + computing));
}

int run_rank(int rank, int size, int port, const std::string& what, const std::string& folder) {
  const auto say = [&](const std::string& text) { std::ofstream(folder + "/" + what + "-" + std::to_string(rank)) << text; };
  try {
    const bool one_gpu = what == "duplicate";
    const auto device = open_device({.kind = DeviceKind::cuda, .ordinal = one_gpu ? 0 : rank, .compute_type = what == "speed" ? DataType::bf16 : DataType::f32});
    const auto ranks = open_communicator({.kind = CommunicatorKind::nccl, .rank = rank, .size = size, .master_addr = "127.0.0.1", .master_port = port, .nonce = what,
                                          .start_timeout = 60, .agreement = {{"seed", what == "seed" && rank == 1 ? "8" : "7"}}, .log_folder = folder + "/" + what + ".logs",
                                          .collective_timeout = what == "collectives" || what == "speed" ? 30.0 : 6.0},
                                         *device);
    const Memory values(*device, 4096);
    if (what == "collectives") {
      std::uint64_t number = 0;
      for (const std::int64_t count : {1, 3, 1000, 4096, 262'147, 4'000'000}) check_one(*device, *ranks, count, ++number);
      check_exchange(*ranks);
      check_split(*device, *ranks);
      check_edges(*device, *ranks);
      check_many(*device, *ranks);
      check_one(*device, *ranks, 999, 99);
      return check::failures == 0 ? 0 : 1;
    }
    if (what == "speed") time_it(*device, *ranks);
    // What has run once is connected: from here on only the watchdog ends a wait.
    ranks->wait(ranks->all_reduce(values.data(), 64, {.group = 7}));
    device->synchronize();
    if (what == "stop" && rank == 1) raise(SIGSTOP);
    if (what == "die" && rank == 1) _exit(9);
    if (what == "other" && rank == 1) ranks->all_gather(values.data(), values.data(), 64, {.group = 9});
    ranks->wait(ranks->all_reduce(values.data(), 64, {.group = 8}));
    device->synchronize();
    return 0;
  } catch (const Error& error) {
    say(error.what());
    std::fprintf(stderr, "rank %d, %s: %s\n", rank, what.c_str(), error.what());
    return 1;
  }
}

// Starts all ranks and waits for them; exit codes by rank, 124 for one that had to be killed.
std::vector<int> start(int size, const std::string& what, const std::string& folder, double within, int given_up_on = -1) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  static int port = 23450 + getpid() % 5000;
  ++port;
  std::vector<pid_t> processes;
  for (int r = 0; r < size; ++r) {
    const pid_t child = fork();
    if (child == 0) {
      execl(self.c_str(), self.c_str(), "--rank", std::to_string(r).c_str(), std::to_string(size).c_str(), std::to_string(port).c_str(), what.c_str(), folder.c_str(), nullptr);
      _exit(127);
    }
    processes.push_back(child);
  }
  std::vector<int> codes(processes.size(), -1);
  const Clock::time_point begun = Clock::now();
  for (std::size_t left = processes.size() - (given_up_on >= 0 ? 1 : 0); left > 0;) {
    for (std::size_t r = 0; r < processes.size(); ++r) {
      int status = 0;
      if (codes[r] >= 0 || waitpid(processes[r], &status, WNOHANG) != processes[r]) continue;
      codes[r] = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      left -= static_cast<int>(r) == given_up_on ? 0 : 1;
    }
    if (seconds_since(begun) > within) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  for (std::size_t r = 0; r < processes.size(); ++r) {
    if (codes[r] >= 0) continue;
    kill(processes[r], SIGKILL);
    waitpid(processes[r], nullptr, 0);
    codes[r] = 124;
  }
  return codes;
}

std::string text_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void expect_in(const std::string& text, const std::string& part, const std::string& what) { expect(text.find(part) != std::string::npos, what + ": " + text); }

void check_failures(const std::string& folder) {
  expect(start(2, "stop", folder, 40, 1)[0] == watchdog_exit_code, "the exit code beside a stopped rank");
  expect_in(text_of(folder + "/stop.logs/watchdog.txt"), "does not move and stands before all-reduce", "a stopped rank");
  expect(start(2, "die", folder, 40)[0] == watchdog_exit_code, "the exit code beside a dead rank");
  expect_in(text_of(folder + "/die.logs/watchdog.txt"), "rank 1 (process ", "a dead rank");
  const auto codes = start(2, "other", folder, 40);
  expect(codes[0] == watchdog_exit_code || codes[1] == watchdog_exit_code, "the exit code of ranks that differ");
  expect_in(text_of(folder + "/other.logs/watchdog.txt"), "the ranks do not issue the same collectives", "ranks that differ");
  expect(start(2, "seed", folder, 40) == std::vector<int>{1, 1}, "the exit codes of ranks that disagree");
  expect_in(text_of(folder + "/seed-1"), "the ranks differ in seed: rank 0 has 7, rank 1 has 8", "ranks that disagree");
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 7 && std::string(arguments[1]) == "--rank")
    return run_rank(std::atoi(arguments[2]), std::atoi(arguments[3]), std::atoi(arguments[4]), arguments[5], arguments[6]);
  const GpuSurvey& there = survey_gpus();
  if (there.gpus.empty()) {
    std::printf("skipped: %s\n", there.obstacle.c_str());
    return 77;
  }
  std::string folder = (std::filesystem::temp_directory_path() / "nccl-XXXXXX").string();
  if (mkdtemp(folder.data()) == nullptr) return 1;
  expect(start(1, "collectives", folder, 60) == std::vector<int>{0}, "a world of 1");
  expect(start(1, "speed", folder, 60) == std::vector<int>{0}, "the speed of a world of 1");
  expect(start(2, "duplicate", folder, 60) == std::vector<int>{1, 1}, "two ranks on one GPU are refused");
  expect_in(text_of(folder + "/duplicate-0"), "each have a GPU of their own", "two ranks on one GPU");
  if (there.gpus.size() >= 2) {
    expect(start(2, "collectives", folder, 90) == std::vector<int>{0, 0}, "a world of 2");
    expect(start(2, "speed", folder, 60) == std::vector<int>{0, 0}, "the speed of a world of 2");
    check_failures(folder);
  } else {
    std::printf("one GPU: nothing was checked between two\n");
  }
  std::filesystem::remove_all(folder);
  std::printf("nccl: %s\n", check::failures == 0 ? "all as computed" : "FAILED");
  return check::failures == 0 ? 0 : 1;
}
