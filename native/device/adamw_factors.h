// What an AdamW update multiplies with, the same on every device: computed once a step, in double.
#pragma once

namespace tinyllama {

struct AdamWArguments;

struct AdamWFactors {
  float gradient_scale, beta1, beta2, decay, step_size, root_correction, epsilon;
};

AdamWFactors adamw_factors(const AdamWArguments& arguments);

}  // namespace tinyllama
