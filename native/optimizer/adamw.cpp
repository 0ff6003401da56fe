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

AdamW::AdamW(Device& device, const ParameterLayout& layout)
    : device_(device), first_moment_(device, "first moment", layout.count), second_moment_(device, "second moment", layout.count) {
  for (const Parameter& parameter : layout.parameters) {
    const bool gain = parameter.role == ParameterRole::gain;
    if (segments_.empty() || segments_.back().gain != gain) segments_.push_back({parameter.offset, 0, gain});
    segments_.back().count += parameter.count;
  }
}

double AdamW::step(ParameterBuffer& weights, ParameterBuffer& gradients, const AdamWOptions& options) {
  check(options);
  const std::int64_t count = weights.count();
  const double norm = std::sqrt(device_.squared_norm(gradients.data(), count));
  if (!std::isfinite(norm)) {
    gradients.fill_zero();
    device_.synchronize();
    return norm;
  }
  const double scale = options.clip > 0 ? std::min(1.0, options.clip / (norm + 1e-6)) : 1.0;
  AdamWArguments arguments{static_cast<float>(options.learning_rate), static_cast<float>(options.beta1),
                           static_cast<float>(options.beta2),         static_cast<float>(options.epsilon),
                           static_cast<float>(options.weight_decay),  options.step,
                           static_cast<float>(scale)};
  auto apply = [&](std::int64_t offset, std::int64_t length) {
    void* rounded = weights.rounded() ? weights.compute_matrix(offset, 1, length).data : nullptr;
    device_.adamw(weights.data() + offset, rounded, first_moment_.data() + offset, second_moment_.data() + offset, gradients.data() + offset,
                  length, arguments);
  };
  if (options.decay == DecayPolicy::all) {
    apply(0, count);
  } else {
    for (const Segment& segment : segments_) {
      arguments.weight_decay = segment.gain ? 0.0f : static_cast<float>(options.weight_decay);
      apply(segment.offset, segment.count);
    }
  }
  device_.synchronize();
  return norm;
}

}  // namespace tinyllama
