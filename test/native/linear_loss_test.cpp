// The fused output projection with cross entropy, and the log probabilities, against double precision.
#include "native/core/error.h"
#include "test/native/device_check.h"

using namespace tinyllama;
using namespace tinyllama::check;

namespace {

struct Shape {
  std::int64_t rows, vocabulary, width;
};

struct Reference {
  std::vector<double> losses, dhidden, dweight, log_probabilities;
  std::vector<std::uint8_t> greedy;
};

Reference reference(const Shape& s, const std::vector<float>& hidden, const std::vector<float>& weight, const std::vector<float>& before,
                    const std::vector<std::int32_t>& targets, double scale) {
  Reference r{std::vector<double>(targets.size()), std::vector<double>(hidden.size()), {before.begin(), before.end()},
              std::vector<double>(targets.size()), std::vector<std::uint8_t>(targets.size())};
  const auto width = static_cast<std::size_t>(s.width), vocabulary = static_cast<std::size_t>(s.vocabulary);
  std::vector<double> logits(vocabulary);
  for (std::size_t row = 0; row < targets.size(); ++row) {
    if (targets[row] < 0) continue;
    const auto target = static_cast<std::size_t>(targets[row]);
    double top = -1e300, total = 0;
    for (std::size_t v = 0; v < vocabulary; ++v) {
      logits[v] = 0;
      for (std::size_t d = 0; d < width; ++d) logits[v] += static_cast<double>(hidden[row * width + d]) * weight[v * width + d];
      top = std::max(top, logits[v]);
    }
    for (const double logit : logits) total += std::exp(logit - top);
    r.log_probabilities[row] = logits[target] - top - std::log(total);
    r.losses[row] = -r.log_probabilities[row];
    r.greedy[row] = std::max_element(logits.begin(), logits.end()) == logits.begin() + static_cast<std::ptrdiff_t>(target);
    for (std::size_t v = 0; v < vocabulary; ++v) {
      const double gradient = scale * (std::exp(logits[v] - top) / total - (v == target ? 1 : 0));
      for (std::size_t d = 0; d < width; ++d) {
        r.dhidden[row * width + d] += gradient * weight[v * width + d];
        r.dweight[v * width + d] += gradient * hidden[row * width + d];
      }
    }
  }
  return r;
}

// Losses are compared absolutely: those of certain predictions are near zero.
void check_loss(const Shape& s, float spread, int unscored) {
  std::vector<float> hidden = values(s.rows * s.width, 21), weight = values(s.vocabulary * s.width, 22);
  const std::vector<float> before = values(s.vocabulary * s.width, 23);
  for (float& value : hidden) value *= spread;
  std::vector<std::int32_t> targets(static_cast<std::size_t>(s.rows));
  for (std::size_t row = 0; row < targets.size(); ++row) {
    targets[row] = static_cast<std::int32_t>((row * 7919 + 13) % static_cast<std::size_t>(s.vocabulary));
    if (unscored > 0 && row % static_cast<std::size_t>(unscored) != 0) targets[row] = -1;
    // Every third row points at its target, which then usually is the largest logit.
    if (row % 3 == 0 && targets[row] >= 0) {
      for (std::int64_t d = 0; d < s.width; ++d) {
        hidden[row * static_cast<std::size_t>(s.width) + static_cast<std::size_t>(d)] =
            4 * weight[static_cast<std::size_t>(targets[row] * s.width + d)];
      }
    }
  }
  const float scale = 0.125f;
  const Reference want = reference(s, hidden, weight, before, targets, static_cast<double>(scale));
  const std::string name = "linear loss " + std::to_string(s.rows) + "x" + std::to_string(s.vocabulary) + "x" + std::to_string(s.width) +
                           (spread > 1 ? " spread" : "") + (unscored ? " partly unscored" : "");
  on_every_device(
      name,
      [&](Device& device) {
        std::vector<float> losses = values(s.rows, 24), dhidden = values(s.rows * s.width, 25), dweight = before;
        std::vector<float> scores = values(s.rows, 26);
        std::vector<std::uint8_t> greedy(targets.size(), 7);
        device.linear_cross_entropy(losses.data(), view(dhidden, s.rows, s.width), view(dweight, s.vocabulary, s.width),
                                    view(hidden, s.rows, s.width), view(weight, s.vocabulary, s.width), targets.data(), &scale);
        device.linear_log_probability(scores.data(), greedy.data(), view(hidden, s.rows, s.width), view(weight, s.vocabulary, s.width),
                                      targets.data());
        return Outputs{losses, dhidden, dweight, scores, {greedy.begin(), greedy.end()}};
      },
      [&](const Outputs& outputs, const std::string& what) {
        expect_near(outputs[0], want.losses, 3e-6, what + " losses", 1.0);
        expect_near(outputs[1], want.dhidden, 1e-5, what + " dhidden", 1e-2);
        expect_near(outputs[2], want.dweight, 1e-5, what + " dweight");
        expect_near(outputs[3], want.log_probabilities, 3e-6, what + " log probabilities", 1.0);
        for (std::size_t row = 0; row < targets.size(); ++row) {
          expect(outputs[4][row] == static_cast<float>(want.greedy[row]), what + " greedy of row " + std::to_string(row));
        }
      });
}

// Ties: the first of equal logits is the arg max, wherever the vocabulary is cut into blocks.
void check_ties() {
  const std::int64_t vocabulary = 300, width = 3;
  std::vector<float> weight(static_cast<std::size_t>(vocabulary * width)), hidden = {1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0};
  for (const std::size_t row : {std::size_t{50}, std::size_t{60}, std::size_t{250}}) weight[row * 3] = 2;
  const std::vector<std::int32_t> targets = {50, 60, 250, 51};
  on_every_device(
      "ties",
      [&](Device& device) {
        std::vector<float> scores(4);
        std::vector<std::uint8_t> greedy(4);
        device.linear_log_probability(scores.data(), greedy.data(), view(hidden, 4, width), view(weight, vocabulary, width),
                                      targets.data());
        return Outputs{{greedy.begin(), greedy.end()}};
      },
      [&](const Outputs& outputs, const std::string& what) {
        expect(outputs[0] == std::vector<float>{1, 0, 0, 0}, what + ": first arg max only");
      });
}

// A target so unlikely that exp(largest logit - its logit) is no number: the loss is the difference, and the gradients are one-hot.
void check_hopeless_target() {
  const std::int64_t vocabulary = 200;
  std::vector<float> weight(static_cast<std::size_t>(vocabulary), 0.f), hidden = {1.f, 2.f, -1.f};
  weight[3] = 500.f, weight[150] = -500.f;
  const std::vector<std::int32_t> targets = {150, 3, 3};
  on_every_device(
      "hopeless target",
      [&](Device& device) {
        std::vector<float> losses(3), dhidden(3), dweight(weight.size());
        const float half = 0.5f;
        device.linear_cross_entropy(losses.data(), view(dhidden, 3, 1), view(dweight, vocabulary, 1), view(hidden, 3, 1),
                                    view(weight, vocabulary, 1), targets.data(), &half);
        return Outputs{losses, dhidden, {dweight[3], dweight[150], dweight[7]}};
      },
      [&](const Outputs& outputs, const std::string& what) {
        expect_near(outputs[0], {1000, 0, 1000}, 1e-6, what + " losses");
        expect_near(outputs[1], {500, 0, -500}, 1e-6, what + " dhidden");
        expect_near(outputs[2], {0.5 * 1 + 0.5 * 1, -0.5 * 1 - 0.5 * 1, 0}, 1e-6, what + " dweight");
      });
}

void check_target_outside() {
  std::vector<float> memory(64);
  const std::int32_t target = 9;
  try {
    make_cpu_device(1)->linear_log_probability(memory.data(), nullptr, view(memory, 0, 4), view(memory, 8, 4), &target);
    std::uint8_t greedy = 0;
    make_cpu_device(1)->linear_log_probability(memory.data(), &greedy, view(memory, 1, 4), view(memory, 8, 4), &target);
    expect(false, "a target outside the vocabulary must throw");
  } catch (const Error& error) {
    expect(std::string(error.what()).find("target 9 of row 0") != std::string::npos, std::string("names the target: ") + error.what());
  }
}

}  // namespace

int main() {
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{1, 7, 16}, Shape{33, 97, 5}, Shape{31, 257, 24}, Shape{130, 1000, 33},
                             Shape{500, 193, 40}, Shape{1100, 300, 12}}) {
    for (const float spread : {1.f, 20.f}) {
      check_loss(shape, spread, 0);
      check_loss(shape, spread, 4);
    }
  }
  check_ties();
  check_hopeless_target();
  check_target_outside();
  return report("linear_loss_test");
}
