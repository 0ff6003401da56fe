#include "native/optimizer/adamw.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "native/core/error.h"

namespace tinyllama {

namespace {

void check(const AdamWOptions& options) {
  require(options.step >= 1, "AdamW: step counts from 1, got " + std::to_string(options.step));
  auto check_decay_rate = [](double value, const char* name) {
    require(value >= 0 && value < 1, std::string("AdamW: ") + name + " must lie in [0, 1), got " + std::to_string(value));
  };
  auto check_amount = [](double value, const char* name) {
    require(value >= 0 && std::isfinite(value),
            std::string("AdamW: ") + name + " must be finite and not negative, got " + std::to_string(value));
  };
  check_decay_rate(options.beta1, "beta1");
  check_decay_rate(options.beta2, "beta2");
  check_amount(options.learning_rate, "learning rate");
  check_amount(options.epsilon, "epsilon");
  check_amount(options.weight_decay, "weight decay");
  check_amount(options.clip, "clip");
}

}  // namespace

AdamW::AdamW(Device& device, ParameterStore& store)
    : device_(device),
      store_(store),
      first_moment_(device, "first moment", store.shards(), store.state_type()),
      second_moment_(device, "second moment", store.shards(), store.state_type()) {
  for (const Parameter& parameter : store.layout().parameters) {
    const bool gain = parameter.role == ParameterRole::gain;
    if (segments_.empty() || segments_.back().gain != gain) segments_.push_back({parameter.offset, 0, gain});
    segments_.back().count += parameter.count;
  }
}

void AdamW::update(const ParameterStore::Update& part, const AdamWOptions& options, float gradient_scale) {
  AdamWArguments arguments{static_cast<float>(options.learning_rate), static_cast<float>(options.beta1),
                           static_cast<float>(options.beta2),         static_cast<float>(options.epsilon),
                           static_cast<float>(options.weight_decay),  options.step,
                           gradient_scale};
  auto apply = [&](std::int64_t first, std::int64_t length) {
    if (store_.state_type() == DataType::bf16) {
      device_.adamw_stochastic(static_cast<std::uint16_t*>(part.weights) + first, first_moment_.halves() + part.local + first,
                               second_moment_.halves() + part.local + first, part.gradients + first, length, part.flat + first, options.seed,
                               arguments);
      return;
    }
    auto* rounded = static_cast<std::byte*>(part.rounded);
    device_.adamw(static_cast<float*>(part.weights) + first, rounded ? rounded + first * bytes_of(device_.compute_type()) : nullptr,
                  first_moment_.data() + part.local + first, second_moment_.data() + part.local + first, part.gradients + first, length, arguments);
  };
  if (options.decay == DecayPolicy::all) {
    apply(0, part.count);
    return;
  }
  for (const Segment& segment : segments_) {
    const std::int64_t first = std::max(segment.offset, part.flat), end = std::min(segment.offset + segment.count, part.flat + part.count);
    if (first >= end) continue;
    arguments.weight_decay = segment.gain ? 0.0f : static_cast<float>(options.weight_decay);
    apply(first - part.flat, end - first);
  }
}

double AdamW::step(const AdamWOptions& options) {
  check(options);
  const double norm = store_.gradient_norm();
  if (!std::isfinite(norm)) {
    store_.clear_gradients();
    device_.synchronize();
    return norm;
  }
  const double scale = options.clip > 0 ? std::min(1.0, options.clip / (norm + 1e-6)) : 1.0;
  for (const ParameterStore::Update& part : store_.updates()) update(part, options, static_cast<float>(scale));
  store_.finish_update();
  device_.synchronize();
  return norm;
}

}  // namespace tinyllama
