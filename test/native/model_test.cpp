// The model's own promises: layout, generator, gradients against finite differences, tied embeddings, errors.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "native/core/error.h"
#include "native/core/philox.h"
#include "native/device/cpu/cpu_device.h"
#include "native/model/initialization.h"
#include "native/distributed/single_communicator.h"
#include "native/training/training_engine.h"
#include "test/native/checks.h"

using namespace tinyllama;
using check::expect;
using check::expect_throws;

namespace {

TrainingEngine make_engine(const LlamaConfig& config, Recompute recompute = Recompute::none, int threads = 2) {
  std::unique_ptr<Device> device = make_cpu_device(threads);
  std::unique_ptr<Communicator> world = make_single_communicator(*device);
  return TrainingEngine(std::move(device), std::move(world), config, {{}, recompute, {}});
}

LlamaConfig small_config(bool tied) {
  LlamaConfig config;
  config.vocab_size = 19;
  config.hidden_size = 12;
  config.intermediate_size = 20;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 6;  // not hidden_size / heads
  config.rope_theta = 500.0;
  config.tie_word_embeddings = tied;
  return config;
}

struct Ids {
  std::vector<std::int32_t> tokens, targets;
};

Ids some_ids(std::int64_t count, std::int64_t vocabulary) {
  Ids ids;
  for (std::int64_t index = 0; index < count; ++index) {
    ids.tokens.push_back(static_cast<std::int32_t>((index * 7 + index * index * 3) % vocabulary));
    ids.targets.push_back(static_cast<std::int32_t>((index * 5 + 2) % vocabulary));
  }
  return ids;
}

// Known answers of Random123's kat_vectors for philox4x32-10.
void test_philox() {
  expect(philox({0, 0, 0, 0}, {0, 0}) == PhiloxCounter{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U}, "philox of zeros");
  const std::uint32_t ones = 0xffffffffU;
  expect(philox({ones, ones, ones, ones}, {ones, ones}) == PhiloxCounter{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU},
        "philox of ones");
  expect(philox({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U}, {0xa4093822U, 0x299f31d0U}) ==
            PhiloxCounter{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U},
        "philox of pi");
}

void test_initialization() {
  constexpr std::int64_t count = 200'000;
  std::vector<float> values(count), piece(1000);
  make_cpu_device(2)->fill_normal(values.data(), count, 42, 0, 1.0f);
  make_cpu_device(1)->fill_normal(piece.data(), 1000, 42, 12'345, 1.0f);
  expect(std::equal(piece.begin(), piece.end(), values.begin() + 12'345), "element i depends on (seed, i) alone");
  double mean = 0, square = 0;
  for (const float value : values) mean += value, square += static_cast<double>(value) * value;
  expect(std::abs(mean / count) < 0.01 && std::abs(square / count - 1) < 0.02, "standard normal moments");
  const LlamaConfig config = small_config(false);
  expect(std::abs(initial_deviation(config, ParameterRole::matrix) - std::sqrt(2.0 / (5.0 * 12))) < 1e-12, "deviation of matrices");
  expect(std::abs(initial_deviation(config, ParameterRole::residual_projection) - 1.0 / (std::sqrt(12.0) * 2)) < 1e-12,
        "deviation of residual projections");
}

void test_layout() {
  const ParameterLayout layout = parameter_layout(small_config(false));
  expect(layout.parameters.size() == 2 * 9 + 3, "tensor count");
  expect(layout.parameters[1].name == "model.layers.0.input_layernorm.weight", "the norm precedes q_proj");
  expect(layout.parameters.back().name == "lm_head.weight" && layout.parameters.back().offset == layout.head, "the head comes last");
  std::int64_t offset = 0;
  for (const Parameter& parameter : layout.parameters) {
    expect(parameter.offset == offset, parameter.name + " follows without a gap");
    offset += parameter.count;
  }
  expect(offset == layout.count, "count");
  const ParameterLayout tied = parameter_layout(small_config(true));
  expect(tied.head == tied.embedding && layout.count - tied.count == 19 * 12, "tied: no lm_head");
}

// d loss / d weight against central differences. fp32 forwards bound what can be seen: about 1e-3 of the tensor's largest gradient.
void test_gradients(bool tied, const std::vector<std::int32_t>& first_keys) {
  const LlamaConfig config = small_config(tied);
  TrainingEngine engine = make_engine(config);
  Llama& model = engine.llama;
  engine.store.initialize(7);
  // Weights large enough for every path to matter.
  std::vector<float> weights(static_cast<std::size_t>(model.layout().count));
  for (const Parameter& parameter : model.layout().parameters) {
    std::vector<float> values(static_cast<std::size_t>(parameter.count));
    engine.device->fill_normal(values.data(), parameter.count, 3, parameter.offset, 1.0f);
    const bool gain = parameter.role == ParameterRole::gain;
    for (std::size_t index = 0; index < values.size(); ++index) {
      weights[static_cast<std::size_t>(parameter.offset) + index] = gain ? 1.0f + 0.1f * values[index] : 0.25f * values[index];
    }
  }
  engine.store.weights().write(0, model.layout().count, weights.data());
  engine.store.weights_written();
  Ids ids = some_ids(2 * 5, config.vocab_size);
  ids.targets[3] = -1;
  const TokenBatch batch{ids.tokens, ids.targets, 2, 5, first_keys};
  const BatchLoss first = model.accumulate(batch, 1.0f);
  expect(first.scored == 9, "a target below 0 is not scored");
  std::vector<float> gradients(weights.size());
  engine.store.read_gradients(0, model.layout().count, gradients.data());

  auto loss_with = [&](std::size_t index, float value) {
    engine.store.weights().write(static_cast<std::int64_t>(index), 1, &value);
    engine.store.weights_written();
    const BatchScores scores = model.score(batch);
    engine.store.weights().write(static_cast<std::int64_t>(index), 1, &weights[index]);
    engine.store.weights_written();
    double sum = 0;
    for (const float log_probability : scores.log_probabilities) sum -= log_probability;
    return sum;
  };
  for (const Parameter& parameter : model.layout().parameters) {
    float largest = 0;
    for (std::int64_t index = parameter.offset; index < parameter.offset + parameter.count; ++index) {
      largest = std::max(largest, std::abs(gradients[static_cast<std::size_t>(index)]));
    }
    for (std::int64_t probe = 0; probe < 6; ++probe) {
      const auto index = static_cast<std::size_t>(parameter.offset + (probe * 31 + 5) % parameter.count);
      constexpr float step = 1e-2f;
      const double slope = (loss_with(index, weights[index] + step) - loss_with(index, weights[index] - step)) / (2.0 * step);
      const double error = std::abs(slope - static_cast<double>(gradients[index]));
      expect(error <= 2e-3 * static_cast<double>(largest) + 2e-3,
            (tied ? "tied " : "") + std::string(first_keys.empty() ? "" : "documents ") + parameter.name + " element " + std::to_string(index) + ": gradient " +
                std::to_string(gradients[index]) + ", finite difference " + std::to_string(slope));
    }
  }

  // Accumulation adds: the same batch with scale 0.5 gives 1.5 times the gradient.
  model.accumulate(batch, 0.5f);
  std::vector<float> more(gradients.size());
  engine.store.read_gradients(0, model.layout().count, more.data());
  double difference = 0, norm = 0;
  for (std::size_t index = 0; index < more.size(); ++index) {
    difference += std::pow(more[index] - 1.5 * gradients[index], 2);
    norm += std::pow(1.5 * gradients[index], 2);
  }
  expect(difference <= 1e-10 * norm, "gradients accumulate with their scale");
}

// What is computed again is what was computed: every level gives the bits of keeping everything.
void test_recompute() {
  const LlamaConfig config = small_config(false);
  const Ids ids = some_ids(2 * 7, config.vocab_size);
  std::vector<float> kept;
  for (const Recompute level : {Recompute::none, Recompute::pointwise, Recompute::gate_up, Recompute::full}) {
    TrainingEngine engine = make_engine(config, level);
    Llama& model = engine.llama;
    engine.store.initialize(7);
    model.accumulate({ids.tokens, ids.targets, 2, 7}, 0.25f);
    std::vector<float> gradients(static_cast<std::size_t>(model.layout().count));
    engine.store.read_gradients(0, model.layout().count, gradients.data());
    if (level == Recompute::none) kept = gradients;
    expect(gradients == kept, "recompute level " + std::to_string(static_cast<int>(level)) + " gives the same gradients");
  }
}

// Scores and losses agree, in any batch shape, after longer and shorter batches went before.
void test_shapes() {
  const LlamaConfig config = small_config(false);
  TrainingEngine engine = make_engine(config);
  Llama& model = engine.llama;
  engine.store.initialize(1);
  auto run = [&](std::int64_t batch, std::int64_t length) {
    const Ids ids = some_ids(batch * length, config.vocab_size);
    const TokenBatch view{ids.tokens, ids.targets, batch, length};
    const double loss = model.accumulate(view, 1.0f).sum;
    const BatchScores scores = model.score(view);
    const std::vector<float> logits = model.logits(view);
    double scored = 0, recomputed = 0;
    for (std::size_t row = 0; row < scores.log_probabilities.size(); ++row) {
      scored -= scores.log_probabilities[row];
      const float* values = logits.data() + row * static_cast<std::size_t>(config.vocab_size);
      const float top = *std::max_element(values, values + config.vocab_size);
      double sum = 0;
      for (std::int64_t id = 0; id < config.vocab_size; ++id) sum += std::exp(static_cast<double>(values[id] - top));
      recomputed += std::log(sum) + static_cast<double>(top - values[ids.targets[row]]);
      const bool greedy = std::max_element(values, values + config.vocab_size) - values == ids.targets[row];
      expect(greedy == (scores.greedy[row] == 1), "greedy of row " + std::to_string(row));
    }
    const std::string shape = std::to_string(batch) + " x " + std::to_string(length);
    expect(std::abs(loss - scored) <= 1e-5 * loss, "score equals loss at " + shape);
    expect(std::abs(loss - recomputed) <= 1e-5 * loss, "logits give the loss at " + shape);
    return loss;
  };
  const double before = run(3, 7);
  run(1, 1);
  run(1, 201);
  expect(run(3, 7) == before, "the result does not depend on earlier shapes");
}

// Packed documents have the losses and the gradients that each has as a sequence of its own: positions are relative.
void test_documents() {
  const LlamaConfig config = small_config(false);
  constexpr std::int64_t length = 150;
  const std::vector<std::int64_t> starts{0, 41, 42, 130, length};
  const Ids ids = some_ids(length, config.vocab_size);
  std::vector<std::int32_t> first_keys;
  for (std::size_t document = 0; document + 1 < starts.size(); ++document)
    first_keys.resize(static_cast<std::size_t>(starts[document + 1]), static_cast<std::int32_t>(starts[document]));
  for (const Recompute level : {Recompute::none, Recompute::full}) {
    TrainingEngine engine = make_engine(config, level);
    Llama& model = engine.llama;
    engine.store.initialize(3);
    auto gradients = [&] {
      std::vector<float> values(static_cast<std::size_t>(model.layout().count));
      engine.store.read_gradients(0, model.layout().count, values.data());
      engine.store.clear_gradients();
      return values;
    };
    const TokenBatch packed{ids.tokens, ids.targets, 1, length, first_keys};
    const BatchScores scores = model.score(packed);
    const BatchLoss together = model.accumulate(packed, 1.0f);
    const std::vector<float> packed_gradients = gradients();
    double loss = 0, worst = 0;
    for (std::size_t document = 0; document + 1 < starts.size(); ++document) {
      const auto begin = static_cast<std::size_t>(starts[document]), count = static_cast<std::size_t>(starts[document + 1]) - begin;
      const TokenBatch alone{std::span(ids.tokens).subspan(begin, count), std::span(ids.targets).subspan(begin, count), 1,
                             static_cast<std::int64_t>(count)};
      const BatchScores expected = model.score(alone);
      for (std::size_t i = 0; i < count; ++i)
        worst = std::max(worst, std::abs(static_cast<double>(scores.log_probabilities[begin + i]) - expected.log_probabilities[i]));
      loss += model.accumulate(alone, 1.0f).sum;
    }
    expect(worst <= 2e-5, "packed documents have their own log probabilities: off by " + std::to_string(worst));
    expect(std::abs(together.sum - loss) <= 1e-6 * loss, "packed documents have their own losses");
    const std::vector<float> alone_gradients = gradients();
    double difference = 0, norm = 0;
    for (std::size_t index = 0; index < alone_gradients.size(); ++index) {
      difference += std::pow(packed_gradients[index] - alone_gradients[index], 2);
      norm += std::pow(alone_gradients[index], 2);
    }
    expect(difference <= 1e-10 * norm, "packed documents have their own gradients: off by " + std::to_string(std::sqrt(difference / norm)));
    // The next pass may have no first keys.
    const BatchLoss causal = model.accumulate({ids.tokens, ids.targets, 1, length}, 1.0f);
    expect(std::abs(causal.sum - loss) > 2e-5 * loss, "without first keys documents see each other: off by " + std::to_string((causal.sum - loss) / loss * 1e6) + "e-6");
  }
}

void test_optimizer() {
  const LlamaConfig config = small_config(false);
  TrainingEngine engine = make_engine(config);
  Llama& model = engine.llama;
  engine.store.initialize(1);
  AdamW& optimizer = engine.optimizer;
  const auto count = static_cast<std::size_t>(model.layout().count);
  auto read = [&](ShardedBuffer& buffer) {
    std::vector<float> values(count);
    buffer.read(0, model.layout().count, values.data());
    return values;
  };
  const std::vector<float> initial = read(engine.store.weights());

  // Nothing of a non-finite gradient reaches the weights, and the next step starts from zero.
  const float infinite = HUGE_VALF;
  engine.store.write_gradients(5, 1, &infinite);
  AdamWOptions options;
  options.learning_rate = 0.1;
  options.weight_decay = 0.5;
  options.decay = DecayPolicy::matrices;
  expect(!std::isfinite(optimizer.step(options)), "the norm is reported");
  expect(read(engine.store.weights()) == initial, "an infinite gradient applies nothing");

  // Zero gradients: only decay acts, and not on gains under "matrices".
  expect(optimizer.step(options) == 0, "the gradients were zeroed");
  const std::vector<float> decayed = read(engine.store.weights());
  for (const Parameter& parameter : model.layout().parameters) {
    const auto index = static_cast<std::size_t>(parameter.offset);
    const float expected = parameter.role == ParameterRole::gain ? initial[index] : initial[index] * 0.95f;
    expect(std::abs(decayed[index] - expected) <= 1e-6f, "decay of " + parameter.name);
  }

  // Clipping: the first step of Adam is sign-like, so look at the first moment: (1 - beta1) * clip / norm * gradient.
  AdamW fresh(*engine.device, engine.store);
  std::vector<float> gradients(count, 0.0f);
  gradients[0] = 3.0f;
  gradients[1] = 4.0f;
  engine.store.write_gradients(0, model.layout().count, gradients.data());
  options.clip = 1.0;
  expect(std::abs(fresh.step(options) - 5.0) < 1e-6, "global norm");
  expect(std::abs(read(fresh.first_moment())[1] - 0.1f * 0.8f) < 1e-6f, "clipped to norm 1");
}

void test_errors() {
  LlamaConfig config = small_config(false);
  TrainingEngine engine = make_engine(config);
  Llama& model = engine.llama;
  Ids ids = some_ids(6, config.vocab_size);
  ids.tokens[4] = 19;
  expect_throws([&] { model.accumulate({ids.tokens, ids.targets, 2, 3}, 1.0f); }, "token 19 at index 4 (sequence 1, position 1)");
  ids.tokens[4] = -1;
  expect_throws([&] { model.score({ids.tokens, ids.targets, 2, 3}); }, "token -1 at index 4");
  ids.tokens[4] = 0;
  ids.targets[5] = 400;
  expect_throws([&] { model.accumulate({ids.tokens, ids.targets, 2, 3}, 1.0f); }, "target 400 at index 5");
  ids.targets[5] = 0;
  std::vector<std::int32_t> first_keys{0, 0, 2, 0, 1, 3};
  expect_throws([&] { model.accumulate({ids.tokens, ids.targets, 2, 3, first_keys}, 1.0f); }, "first key 3 at index 5 must lie between 0 and its position 2");
  first_keys[5] = -1;
  expect_throws([&] { model.score({ids.tokens, ids.targets, 2, 3, first_keys}); }, "first key -1 at index 5");
  first_keys.pop_back();
  expect_throws([&] { model.logits({ids.tokens, {}, 2, 3, first_keys}); }, "first keys has 5 ids, but 2 sequences of 3 tokens are 6");
  expect_throws([&] { model.logits({ids.tokens, {}, 2, 4}); }, "tokens has 6 ids");
  expect_throws([&] { model.logits({ids.tokens, {}, 0, 4}); }, "at least 1");
  float value = 0;
  expect_throws([&] { engine.store.weights().read(model.layout().count, 1, &value); }, "outside");
  config.vocab_size = 0;
  expect_throws([&] { make_engine(config); }, "vocab_size must lie between 1 and");
  config = small_config(false);
  config.num_attention_heads = config.head_dim = config.hidden_size = 1 << 20;
  expect_throws([&] { make_engine(config); }, "too large");
  config = small_config(false);
  config.num_key_value_heads = 3;
  expect_throws([&] { make_engine(config); }, "multiple of num_key_value_heads");
  config.num_key_value_heads = 2;
  config.head_dim = 5;
  expect_throws([&] { make_engine(config); }, "head_dim must be even");
}

}  // namespace

int main() {
  test_philox();
  test_initialization();
  test_layout();
  test_gradients(false, {});
  test_gradients(true, {});
  test_gradients(false, {0, 0, 2, 2, 2, 0, 1, 1, 1, 4});
  test_recompute();
  test_shapes();
  test_documents();
  test_optimizer();
  test_errors();
  if (check::failures == 0) std::printf("model_test: all checks passed\n");
  return check::failures == 0 ? 0 : 1;
}
