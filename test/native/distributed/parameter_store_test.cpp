// Training on 1 to 4 ranks against training on one: the same bits where gradients are summed in fixed order, the same within rounding otherwise,
// for every strategy. Each rank also trains alone what all train together, and compares what it holds.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "native/core/philox.h"
#include "native/device/cpu/cpu_device.h"
#include "native/distributed/open_communicator.h"
#include "native/training/training_engine.h"
#include "test/native/checks.h"
#include "test/native/distributed/late_communicator.h"
#include "test/native/distributed/mpirun.h"

using namespace tinyllama;
using check::expect;

namespace {

// Whether collectives run only when they are waited for, which shows a wait that is missing.
bool late = false;

constexpr std::int64_t batch = 2, length = 9, micro_batches = 12;

LlamaConfig small_config(bool tied) {
  LlamaConfig config;
  config.vocab_size = 331, config.hidden_size = 60, config.intermediate_size = 90, config.num_hidden_layers = 3;
  config.num_attention_heads = 4, config.num_key_value_heads = 2, config.head_dim = 14, config.tie_word_embeddings = tied;
  return config;
}

TrainingEngine make_engine(const LlamaConfig& config, const CommunicatorOptions& world, const Sharding& sharding, DataType state_type) {
  std::unique_ptr<Device> device = make_cpu_device(1);
  std::unique_ptr<Communicator> communicator = open_communicator(world, *device);
  if (late && world.size > 1) communicator = std::make_unique<check::LateCommunicator>(std::move(communicator));
  return TrainingEngine(std::move(device), std::move(communicator), config, {{}, Recompute::none, sharding, state_type});
}

std::vector<std::int32_t> ids_of(std::int64_t step, std::int64_t micro_batch) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(batch * length + 1));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<std::int32_t>(
        philox({static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(micro_batch), 0}, {9, 0})[0] % 331);
  }
  return ids;
}

// One optimizer step of `count` micro-batches; rank r makes those whose index is r modulo the world. Returns norm and losses by micro-batch.
struct StepResult {
  double norm;
  std::vector<double> losses;
};

StepResult train_step(TrainingEngine& engine, std::int64_t step, std::int64_t count) {
  const int size = engine.world->size(), rank = engine.world->rank();
  const std::int64_t rounds = (count + size - 1) / size;
  std::vector<double> own(static_cast<std::size_t>(rounds)), all(static_cast<std::size_t>(rounds * size));
  for (std::int64_t round = 0; round < rounds; ++round) {
    const std::int64_t index = round * size + rank;
    const auto contributors = static_cast<int>(std::min<std::int64_t>(size, count - round * size));
    engine.store.begin_micro_batch({round + 1 == rounds, contributors});
    const std::vector<std::int32_t> ids = ids_of(step, std::min(index, count - 1));
    const std::span<const std::int32_t> tokens(ids.data(), ids.size() - 1);
    std::vector<std::int32_t> targets(ids.begin() + 1, ids.end());
    if (index >= count) targets.assign(targets.size(), -1);
    own[static_cast<std::size_t>(round)] =
        engine.llama.accumulate({tokens, targets, batch, length}, 1.0f / static_cast<float>(count * batch * length)).sum;
  }
  engine.world->exchange(all.data(), own.data(), own.size() * sizeof(double));
  StepResult result{engine.optimizer.step({.step = step + 1, .learning_rate = 3e-3, .weight_decay = 0.1, .decay = DecayPolicy::matrices, .clip = 0.7, .seed = 11}), {}};
  for (std::int64_t index = 0; index < count; ++index) result.losses.push_back(all[static_cast<std::size_t>(index % size * rounds + index / size)]);
  return result;
}

void compare_held(TrainingEngine& many, TrainingEngine& one, bool bits, const std::string& what) {
  double difference = 0, size = 0;
  bool same = true;
  for (const auto& [ours, theirs] : {std::pair{&many.store.weights(), &one.store.weights()},
                                     std::pair{&many.optimizer.first_moment(), &one.optimizer.first_moment()},
                                     std::pair{&many.optimizer.second_moment(), &one.optimizer.second_moment()}}) {
    for (const ShardLayout::Piece& piece : many.store.shards().pieces()) {
      std::vector<float> a(static_cast<std::size_t>(piece.count)), b(a.size());
      ours->read(piece.flat, piece.count, a.data());
      theirs->read(piece.flat, piece.count, b.data());
      same = same && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
      for (std::size_t i = 0; i < a.size(); ++i) difference += std::pow(a[i] - b[i], 2), size += std::pow(b[i], 2);
    }
  }
  if (bits) expect(same, what + ": other bits of weights or moments");
  expect(difference <= 4e-8 * size, what + ": off by " + std::to_string(std::sqrt(difference / size)));
}

void check_training(const CommunicatorOptions& world, const Sharding& sharding, bool tied, std::int64_t count, DataType state_type = DataType::f32) {
  const std::string what = "rank " + std::to_string(world.rank) + " of " + std::to_string(world.size) + ", strategy " +
                           std::to_string(static_cast<int>(sharding.strategy)) + (sharding.fixed_order ? ", fixed order" : "") + (late ? ", late" : "") +
                           (tied ? ", tied" : "") + (state_type == DataType::bf16 ? ", bf16 state, " : ", ") + std::to_string(count) + " micro-batches";
  const LlamaConfig config = small_config(tied);
  TrainingEngine many = make_engine(config, world, sharding, state_type);
  TrainingEngine one = make_engine(config, {}, {Strategy::none, 0, sharding.fixed_order}, state_type);
  many.store.initialize(5);
  one.store.initialize(5);
  for (std::int64_t step = 0; step < 4; ++step) {
    const StepResult ours = train_step(many, step, count), alone = train_step(one, step, count);
    if (sharding.fixed_order) {
      expect(ours.norm == alone.norm && ours.losses == alone.losses, what + ": other losses or norm in step " + std::to_string(step + 1));
    } else {
      expect(std::abs(ours.norm - alone.norm) <= 1e-4 * alone.norm, what + ": another norm in step " + std::to_string(step + 1));
    }
  }
  compare_held(many, one, sharding.fixed_order, what);
  // What is held is one copy, cut into pieces without gap or overlap.
  std::int64_t held = 0;
  for (const ShardLayout::Piece& piece : many.store.shards().pieces()) held += piece.count;
  std::vector<std::int64_t> all(static_cast<std::size_t>(world.size));
  many.world->exchange(all.data(), &held, sizeof(held));
  std::int64_t total = 0;
  for (int rank = 0; rank < many.store.shards().shards(); ++rank) total += all[static_cast<std::size_t>(rank)];
  expect(total == many.store.layout().count, what + ": the shares hold " + std::to_string(total) + " parameters");
  // Scoring reads the same weights.
  const std::vector<std::int32_t> ids = ids_of(99, 0);
  const std::span<const std::int32_t> tokens(ids.data(), ids.size() - 1), targets(ids.data() + 1, ids.size() - 1);
  const std::vector<float> scores = many.llama.score({tokens, targets, batch, length}).log_probabilities;
  if (sharding.fixed_order) expect(scores == one.llama.score({tokens, targets, batch, length}).log_probabilities, what + ": other scores");
}

int run_rank() {
  const CommunicatorOptions world{.kind = CommunicatorKind::mpi, .rank = check::launched_rank(), .size = check::launched_size()};
  const int shard_size = world.size % 2 == 0 ? 2 : 1;
  for (const Strategy strategy : {Strategy::none, Strategy::zero2, Strategy::fsdp, Strategy::hsdp}) {
    late = world.size > 1;
    check_training(world, {strategy, shard_size, true}, false, micro_batches);
    late = false;
    check_training(world, {strategy, shard_size, true}, true, micro_batches - 1);
    check_training(world, {strategy, shard_size, false}, strategy == Strategy::fsdp, micro_batches);
    check_training(world, {strategy, shard_size, false, true}, strategy == Strategy::zero2, micro_batches - 1);
  }
  return check::failures == 0 ? 0 : 1;
}

}  // namespace

int main(int argument_count, char** arguments) {
  if (argument_count > 1 && std::string(arguments[1]) == "--rank") return run_rank();
  for (const Strategy strategy : {Strategy::none, Strategy::zero2, Strategy::fsdp}) {
    for (const bool fixed_order : {true, false}) check_training({}, {strategy, 0, fixed_order}, false, micro_batches);
    check_training({}, {strategy, 0, false, true}, true, micro_batches);
  }
  const std::string obstacle = check::mpi_obstacle();
  if (obstacle.empty())
    for (int ranks = 1; ranks <= 4; ++ranks) expect(check::mpirun(ranks, "--rank") == 0, "a world of " + std::to_string(ranks) + " under mpirun");
  std::printf("%s\n", check::failures == 0 ? "parameter store: all as computed alone" : "parameter store: FAILED");
  if (check::failures > 0) return 1;
  if (obstacle.empty()) return 0;
  std::printf("skipped the ranks under mpirun: %s\n", obstacle.c_str());
  return 77;
}
