// Every collective against what it must give, computed from what all ranks are known to send: random sizes, in place and not, on worlds of 1 to 4.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "native/core/error.h"
#include "native/distributed/open_communicator.h"
#include "test/native/device_check.h"
#include "test/native/distributed/mpirun.h"
#include "test/native/distributed/rank_values.h"

using namespace tinyllama;
using check::expect;
using check::same_bits;
using check::held;
using check::summed;

namespace {

using Floats = std::vector<float>;

Floats slice(const Floats& from, std::int64_t first, std::int64_t count) { return Floats(from.begin() + first, from.begin() + first + count); }

void check_all_gather(Communicator& ranks, std::int64_t count, std::uint64_t number, bool in_place) {
  const Floats own = held(ranks.rank(), count, number);
  Floats out(static_cast<std::size_t>(count * ranks.size()), NAN), want;
  float* place = out.data() + ranks.rank() * count;
  if (in_place) std::copy(own.begin(), own.end(), place);
  ranks.wait(ranks.all_gather(out.data(), in_place ? place : own.data(), own.size() * sizeof(float), {.group = 1}));
  for (int r = 0; r < ranks.size(); ++r) {
    const Floats part = held(r, count, number);
    want.insert(want.end(), part.begin(), part.end());
  }
  expect(same_bits(out, want), ranks.name() + ": all-gather of " + std::to_string(count));
}

void check_reduce_scatter(Communicator& ranks, std::int64_t count, std::uint64_t number, bool in_place) {
  const std::int64_t first = ranks.rank() * count;
  Floats whole = held(ranks.rank(), count * ranks.size(), number), apart(static_cast<std::size_t>(count), NAN);
  float* part = in_place ? whole.data() + first : apart.data();
  ranks.wait(ranks.reduce_scatter(part, whole.data(), count, {.group = 2}));
  expect(same_bits(Floats(part, part + count), slice(summed(ranks.size(), count * ranks.size(), number), first, count)),
         ranks.name() + ": reduce-scatter of " + std::to_string(count));
}

void check_all_reduce(Communicator& ranks, std::int64_t count, std::uint64_t number) {
  Floats sum = held(ranks.rank(), count, number);
  ranks.wait(ranks.all_reduce(sum.data(), count, {}));
  expect(same_bits(sum, summed(ranks.size(), count, number)), ranks.name() + ": all-reduce of " + std::to_string(count));
}

void check_all_to_all(Communicator& ranks, std::int64_t count, std::uint64_t number) {
  const Floats in = held(ranks.rank(), count * ranks.size(), number);
  Floats out(in.size(), NAN), want;
  ranks.wait(ranks.all_to_all(out.data(), in.data(), static_cast<std::size_t>(count) * sizeof(float), {}));
  for (int r = 0; r < ranks.size(); ++r) {
    const Floats block = slice(held(r, count * ranks.size(), number), ranks.rank() * count, count);
    want.insert(want.end(), block.begin(), block.end());
  }
  expect(same_bits(out, want), ranks.name() + ": all-to-all of " + std::to_string(count));
}

void check_exchange(Communicator& ranks, std::size_t bytes, std::uint64_t number) {
  const auto told = [&](int rank) {
    std::vector<std::uint8_t> tale(bytes);
    for (std::size_t i = 0; i < bytes; ++i) tale[i] = static_cast<std::uint8_t>(i * 7 + number + static_cast<std::uint64_t>(rank) * 31);
    return tale;
  };
  std::vector<std::uint8_t> all(bytes * static_cast<std::size_t>(ranks.size())), want;
  ranks.exchange(all.data(), told(ranks.rank()).data(), bytes);
  for (int r = 0; r < ranks.size(); ++r) {
    const auto tale = told(r);
    want.insert(want.end(), tale.begin(), tale.end());
  }
  expect(all == want, ranks.name() + ": exchange of " + std::to_string(bytes) + " bytes");
}

void check_one(Communicator& ranks, std::int64_t count, std::uint64_t number) {
  check_all_gather(ranks, count, number, number % 2 == 0);
  check_reduce_scatter(ranks, count, number, number % 2 == 0);
  check_all_reduce(ranks, count, number);
  check_all_to_all(ranks, count, number);
  check_exchange(ranks, static_cast<std::size_t>(count % 1000), number);
}

void check_all(Communicator& ranks) {
  std::mt19937_64 random(11);
  std::uint64_t number = 0;
  for (const std::int64_t count : {0, 1, 2, 3, 17, 4096}) check_one(ranks, count, number++);
  for (int i = 0; i < 40; ++i) check_one(ranks, static_cast<std::int64_t>(random() % (std::uint64_t{1} << random() % 17)), number++);
  // More than a backend moves or sums in one piece.
  check_one(ranks, (std::int64_t{5} << 20) + 3, number);
}

void check_splits(Communicator& ranks) {
  std::vector<int> parity, reversed;
  for (int r = 0; r < ranks.size(); ++r) {
    parity.push_back(r % 2);
    reversed.push_back(ranks.size() - r);
  }
  const std::unique_ptr<Communicator> like = ranks.split(parity), alone = ranks.split(reversed);
  expect(like->size() == (ranks.size() + 1 - ranks.rank() % 2) / 2 && like->rank() == ranks.rank() / 2, "split by parity");
  expect(alone->size() == 1 && alone->rank() == 0, "split into single ranks");
  float sum = static_cast<float>(ranks.rank());
  like->wait(like->all_reduce(&sum, 1, {}));
  int want = 0;
  for (int r = ranks.rank() % 2; r < ranks.size(); r += 2) want += r;
  expect(sum == static_cast<float>(want), "sum over ranks of one parity");
}

void expect_error(const std::function<void()>& act, const std::string& part, const std::string& what) {
  std::string message = "no error";
  try {
    act();
  } catch (const Error& error) {
    message = error.what();
  }
  expect(message.find(part) != std::string::npos, what + ": " + message);
}

int run_rank() {
  const std::unique_ptr<Device> device = make_cpu_device(1);
  const int rank = check::launched_rank(), size = check::launched_size();
  const std::unique_ptr<Communicator> ranks = open_communicator({CommunicatorKind::mpi, rank, size}, *device);
  expect(ranks->rank() == rank && ranks->size() == size, "rank and size");
  check_all(*ranks);
  check_splits(*ranks);
  const std::unique_ptr<Communicator> staged = open_communicator({CommunicatorKind::host_staged, rank, size}, *device);
  check_all(*staged);
  check_splits(*staged);
  expect_error([&] { open_communicator({CommunicatorKind::mpi, rank, size + 1}, *device); }, "the ranks must be started together", "another world");
  if (size > 1) expect_error([&] { open_communicator({CommunicatorKind::mpi, (rank + 1) % size, size}, *device); }, "leave RANK unset", "another rank");
  // One rank's failure is the failure of all: each tells what it found.
  return check::failures == 0 ? 0 : 1;
}

void check_fake() {
  const std::unique_ptr<Device> device = make_cpu_device(1);
  const std::unique_ptr<Communicator> fake = open_communicator({CommunicatorKind::fake, 2, 4}, *device);
  expect(fake->rank() == 2 && fake->size() == 4 && fake->name() == "fake, rank 2 of 4", "the fake world's name");
  Floats out = {0, 1, 2, 3}, part = {9}, whole = {5, 6, 7, 8};
  fake->wait(fake->all_gather(out.data(), part.data(), sizeof(float), {}));
  expect(out == Floats{9, 9, 9, 9}, "the first fake all-gather");
  part = {4};
  fake->wait(fake->all_gather(out.data(), part.data(), sizeof(float), {}));
  expect(out == Floats{9, 9, 4, 9}, "the next fake all-gather");
  fake->wait(fake->all_reduce(out.data(), 4, {0}));
  expect(out == Floats{9, 9, 4, 9}, "fake all-reduce of a group");
  fake->wait(fake->all_reduce(out.data(), 4, {}));
  expect(out[0] != 0 && out[1] != out[0] && std::abs(out[2]) < 6, "fake all-reduce of no group");
  fake->wait(fake->reduce_scatter(part.data(), whole.data(), 1, {}));
  expect(part == Floats{7}, "fake reduce-scatter");
  fake->wait(fake->all_to_all(out.data(), whole.data(), sizeof(float), {}));
  expect(out == whole, "fake all-to-all");
  int told[4] = {}, own = 3;
  fake->exchange(told, &own, sizeof(own));
  expect(told[0] == 3 && told[3] == 3, "fake exchange");
  const std::unique_ptr<Communicator> half = fake->split({0, 0, 1, 1});
  expect(half->rank() == 0 && half->size() == 2, "fake split");
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "--rank") return run_rank();
  const std::unique_ptr<Device> device = make_cpu_device(1);
  const std::unique_ptr<Communicator> single = open_communicator({}, *device);
  check_all(*single);
  check_splits(*single);
  check_fake();
  expect_error([&] { open_communicator({CommunicatorKind::single, 0, 2}, *device); }, "needs MPI or NCCL", "two ranks, no backend");
  expect_error([&] { open_communicator({CommunicatorKind::mpi, 4, 4}, *device); }, "RANK must be from 0", "rank 4 of 4");
  setenv("TINYLLAMA_MPI_LIBRARY", "/nowhere/libtinyllama_mpi.so", 1);
  expect_error([&] { open_communicator({CommunicatorKind::mpi, 0, 1}, *device); }, "libopenmpi-dev", "an engine built without MPI");
  unsetenv("TINYLLAMA_MPI_LIBRARY");
  const std::string obstacle = check::mpi_obstacle();
  if (obstacle.empty())
    for (int ranks = 1; ranks <= 4; ++ranks) expect(check::mpirun(ranks, "--rank") == 0, "a world of " + std::to_string(ranks) + " under mpirun");
  std::printf("%s\n", check::failures == 0 ? "communicators: all as computed" : "communicators: FAILED");
  if (check::failures > 0) return 1;
  if (obstacle.empty()) return 0;
  std::printf("skipped the ranks under mpirun: %s\n", obstacle.c_str());
  return 77;
}
