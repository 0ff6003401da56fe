#include "native/model/initialization.h"

#include <cmath>

namespace tinyllama {

double initial_deviation(const LlamaConfig& config, ParameterRole role) {
  const auto width = static_cast<double>(config.hidden_size);
  if (role == ParameterRole::residual_projection) return 1.0 / (std::sqrt(width) * static_cast<double>(config.num_hidden_layers));
  return std::sqrt(2.0 / (5.0 * width));
}

}  // namespace tinyllama
