// What a rank allocates while it trains against what the plan says: to the byte, for every strategy and size of the world, in a world that is made up.
#include <cstdio>
#include <string>
#include <vector>

#include "native/core/philox.h"
#include "native/device/cpu/cpu_device.h"
#include "native/device/cuda/scratch_sizes.h"
#include "native/distributed/open_communicator.h"
#include "native/training/memory_plan.h"
#include "native/training/training_engine.h"
#include "test/native/checks.h"

using namespace tinyllama;
using check::expect;

namespace {

constexpr std::int64_t batch = 2, length = 12;

// The embedding has one block for each of 64 ranks: who holds nothing at all allocates no moments.
LlamaConfig small_config(bool tied) {
  LlamaConfig config;
  config.vocab_size = 4096, config.hidden_size = 64, config.intermediate_size = 90, config.num_hidden_layers = 3;
  config.num_attention_heads = 4, config.num_key_value_heads = 2, config.head_dim = 14, config.tie_word_embeddings = tied;
  return config;
}

// Two steps of two micro-batches; the bytes allocated at their end, and the loss.
struct Outcome {
  std::size_t bytes;
  double loss;
};

Outcome train(const LlamaConfig& config, const CommunicatorOptions& world, const EngineOptions& options) {
  std::unique_ptr<Device> device = make_cpu_device(1);
  std::unique_ptr<Communicator> ranks = open_communicator(world, *device);
  TrainingEngine engine(std::move(device), std::move(ranks), config, options);
  engine.store.initialize(5);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(batch * length + 1));
  double loss = 0;
  for (std::int64_t step = 0; step < 2; ++step) {
    for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
      for (std::size_t i = 0; i < ids.size(); ++i)
        ids[i] = static_cast<std::int32_t>(philox({static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(step), 0, 0}, {9, 0})[0] % 4096);
      engine.store.begin_micro_batch({micro_batch == 1, world.size});
      const std::span<const std::int32_t> tokens(ids.data(), ids.size() - 1), targets(ids.data() + 1, ids.size() - 1);
      loss = engine.llama.accumulate({tokens, targets, batch, length}, 1.0f / static_cast<float>(batch * length)).sum;
    }
    engine.optimizer.step({.step = step + 1, .learning_rate = 1e-3, .clip = 1.0, .seed = 11});
  }
  return {engine.device->memory_in_use(), loss};
}

void check_rank(int size, int rank, const Sharding& sharding, DataType state, Recompute recompute, bool tied) {
  const LlamaConfig config = small_config(tied);
  const std::string what = "rank " + std::to_string(rank) + " of " + std::to_string(size) + ", strategy " +
                           std::to_string(static_cast<int>(sharding.strategy)) + (sharding.fixed_order ? ", fixed order" : "") +
                           (sharding.share_gradients ? ", gradients shared out" : "") + (state == DataType::bf16 ? ", bf16 state" : "") + (tied ? ", tied" : "");
  const auto kind = size == 1 ? CommunicatorKind::single : CommunicatorKind::fake;
  const Outcome outcome = train(config, {.kind = kind, .rank = rank, .size = size}, {{}, recompute, sharding, state});
  const MemoryPlan plan = plan_training_memory(config, batch, length, {.state_type = state, .recompute = recompute, .sharding = sharding, .world = size});
  expect(outcome.bytes == static_cast<std::size_t>(plan.total()),
         what + ": " + std::to_string(outcome.bytes) + " bytes are allocated, " + std::to_string(plan.total()) + " were planned");
  // What other ranks would send is made up, and no pass is of zeros alone.
  expect(outcome.loss > 0 && outcome.loss < 1e6, what + ": the loss is " + std::to_string(outcome.loss));
}

void check_worlds() {
  for (const int size : {1, 8, 16, 64}) {
    for (const Strategy strategy : {Strategy::none, Strategy::zero2, Strategy::fsdp, Strategy::hsdp}) {
      const int shard_size = size == 1 ? 1 : 8;
      check_rank(size, size / 2, {strategy, shard_size, false}, DataType::f32, Recompute::none, false);
      check_rank(size, size - 1, {strategy, shard_size, true}, DataType::f32, Recompute::pointwise, true);
      check_rank(size, 1 % size, {strategy, shard_size, false, true}, DataType::f32, Recompute::gate_up, false);
      check_rank(size, 0, {strategy, shard_size, false}, DataType::bf16, Recompute::full, true);
    }
  }
}

LlamaConfig tinyllama_config() {
  LlamaConfig config;
  config.vocab_size = 32000, config.hidden_size = 2048, config.intermediate_size = 5632, config.num_hidden_layers = 22;
  config.num_attention_heads = 32, config.num_key_value_heads = 4, config.head_dim = 64;
  return config;
}

// Of the 1.1B model on a GPU: each strategy's share, as it is known from the literature, and nothing that more ranks make larger.
void check_bytes_per_parameter() {
  const auto plan = [](Strategy strategy, int world) {
    return plan_training_memory(tinyllama_config(), 8, 2048,
                                {.compute_type = DataType::bf16, .recompute = Recompute::pointwise, .sharding = {strategy, 8, false}, .world = world, .gpu = true});
  };
  const auto per_parameter = [&](Strategy strategy, int world) {
    const MemoryPlan memory = plan(strategy, world);
    return static_cast<double>(memory.weights + memory.gradients + memory.moments) / 1100048384;
  };
  const auto near = [&](Strategy strategy, int world, double wanted, double tolerance) {
    const double found = per_parameter(strategy, world);
    expect(found > wanted - tolerance && found < wanted + tolerance,
           "strategy " + std::to_string(static_cast<int>(strategy)) + " on " + std::to_string(world) + " ranks takes " + std::to_string(found) +
               " bytes a parameter, not about " + std::to_string(wanted));
  };
  near(Strategy::none, 64, 18, 0.01);
  near(Strategy::zero2, 8, 6 + 12.0 / 8, 0.02);
  near(Strategy::zero2, 64, 6 + 12.0 / 64, 0.06);
  // Two layers of 88 MB and the larger of embedding and head, 131 MB, lie whole: 0.28 bytes a parameter.
  near(Strategy::fsdp, 64, 4 + 12.0 / 64 + 0.28, 0.06);
  near(Strategy::hsdp, 64, 4 + 12.0 / 8 + 0.28, 0.06);
  expect(plan(Strategy::fsdp, 16).total() < plan(Strategy::fsdp, 8).total(), "more ranks take no less memory each");
}

// Scratch as the kernels ask for it: 8192 rows of logits, and fp32 sums of the gradients of all queries.
void check_overhead() {
  const AttentionShape heads{16, 2048, 32, 4, 64};
  expect(cuda::LossChunks(32768, 32000, DataType::bf16).rows == 8192, "rows of a chunk of logits");
  expect(cuda::linear_loss_scratch(32768, 32000, DataType::bf16) == std::size_t{8192} * 32000 * 2, "bytes of a chunk of logits");
  const std::size_t sums = std::size_t{32768} * 2048 * 4, taken = cuda::attention_backward_scratch(heads, DataType::bf16);
  expect(taken >= sums && taken < sums + sums / 20, "sums of attention's backward pass: " + std::to_string(taken));
  expect(cuda::attention_backward_scratch(heads, DataType::f32) == std::size_t{16} * 32 * 2048 * 4, "attention's row sums in fp32");
  expect(cuda::training_overhead(heads, 32000, DataType::bf16) == std::size_t{8192} * 32000 * 2 + (std::size_t{64} << 20), "the larger, and the workspace");
  expect(plan_training_memory(tinyllama_config(), 1, 64, {}).overhead == 0, "the CPU holds nothing for itself");
}

}  // namespace

int main() {
  check_worlds();
  check_bytes_per_parameter();
  check_overhead();
  std::printf("%s\n", check::failures == 0 ? "memory plan: every byte as planned" : "memory plan: FAILED");
  return check::failures == 0 ? 0 : 1;
}
