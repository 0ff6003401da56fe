#include "native/device/adamw_factors.h"

#include <cmath>

#include "native/device/device.h"

namespace tinyllama {

AdamWFactors adamw_factors(const AdamWArguments& arguments) {
  const double rate = static_cast<double>(arguments.learning_rate), step = static_cast<double>(arguments.step);
  const double correction1 = 1.0 - std::pow(static_cast<double>(arguments.beta1), step);
  const double correction2 = 1.0 - std::pow(static_cast<double>(arguments.beta2), step);
  return {.gradient_scale = arguments.gradient_scale,
          .beta1 = arguments.beta1,
          .beta2 = arguments.beta2,
          .decay = static_cast<float>(1.0 - rate * static_cast<double>(arguments.weight_decay)),
          .step_size = static_cast<float>(rate / correction1),
          .root_correction = static_cast<float>(1.0 / std::sqrt(correction2)),
          .epsilon = arguments.epsilon};
}

}  // namespace tinyllama
