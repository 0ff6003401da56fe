// Kernels over flat fp32 arrays: the optimizer's update and what surrounds it. A thread takes `vectors` accesses of `width` elements (16 bytes
// where addresses allow it), a block's threads side by side: a block owns threads * vectors * width neighbouring elements of each array, and all
// its loads are issued before the first is used.
#pragma once
#include "native/device/adamw_factors.h"
#include "native/device/cuda/vector_access.h"

namespace tinyllama::cuda {

constexpr int flat_threads = 256;

struct AdamWArrays {
  float* weights;
  __nv_bfloat16* rounded;  // may be null
  float* first_moment;
  float* second_moment;
  float* gradients;
  std::int64_t count;
};

// 32 bytes an element, 34 with `rounded`. Nothing of it is read again soon: all accesses leave the caches to others.
template <int width, int vectors, int resident>
__global__ __launch_bounds__(flat_threads, resident) void adamw_update(AdamWArrays a, AdamWFactors f) {
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * vectors * flat_threads + threadIdx.x) * width;
  Vector<float, width> w[vectors], m[vectors], v[vectors], g[vectors];
#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    const std::int64_t at = first + i * flat_threads * width;
    if (at >= a.count) continue;
    g[i] = load_once<width>(a.gradients + at);
    m[i] = load_once<width>(a.first_moment + at);
    v[i] = load_once<width>(a.second_moment + at);
    w[i] = load_once<width>(a.weights + at);
  }
#pragma unroll
  for (int i = 0; i < vectors; ++i) {
    const std::int64_t at = first + i * flat_threads * width;
    if (at >= a.count) continue;
    Floats<width> weights;
#pragma unroll
    for (int k = 0; k < width; ++k) {
      const float gradient = g[i].lane[k] * f.gradient_scale;
      const float first_moment = fmaf(f.beta1, m[i].lane[k], (1.f - f.beta1) * gradient);
      const float second_moment = fmaf(f.beta2, v[i].lane[k], (1.f - f.beta2) * (gradient * gradient));
      const float update = f.step_size * first_moment / (sqrtf(second_moment) * f.root_correction + f.epsilon);
      m[i].lane[k] = first_moment;
      v[i].lane[k] = second_moment;
      weights.lane[k] = w[i].lane[k] * f.decay - update;
    }
    store_once(a.weights + at, to_vector<float>(weights));
    store_once(a.first_moment + at, m[i]);
    store_once(a.second_moment + at, v[i]);
    store_once(a.gradients + at, Vector<float, width>{});
    if (a.rounded) store_once(a.rounded + at, to_vector<__nv_bfloat16>(weights));
  }
}

}  // namespace tinyllama::cuda
