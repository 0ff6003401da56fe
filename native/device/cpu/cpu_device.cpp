#include "native/device/cpu/cpu_device.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "native/core/error.h"
#include "native/device/cpu/cpu_context.h"
#include "native/device/cpu/gemm.h"

namespace tinyllama {
namespace {

constexpr std::size_t alignment = 64;

class CpuBuffer final : public Buffer {
 public:
  explicit CpuBuffer(std::size_t bytes) : bytes_(bytes) {
    const std::size_t rounded = std::max(alignment, (bytes + alignment - 1) / alignment * alignment);
    data_ = std::aligned_alloc(alignment, rounded);
    if (!data_) throw Error("out of memory: cannot allocate " + std::to_string(bytes) + " bytes");
    std::memset(data_, 0, rounded);
  }
  ~CpuBuffer() override { std::free(data_); }
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;
  void* data() const override { return data_; }
  std::size_t bytes() const override { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) : context_(threads, select_kernels()), pool_(context_.pool) {}
  std::string name() const override { return std::string("cpu-") + context_.kernels.name; }
  std::unique_ptr<Buffer> allocate(std::size_t bytes) override { return std::make_unique<CpuBuffer>(bytes); }
  void copy_in(void* device, const void* host, std::size_t bytes) override { std::memcpy(device, host, bytes); }
  void copy_out(void* host, const void* device, std::size_t bytes) override { std::memcpy(host, device, bytes); }
  void fill_zero(void* device, std::size_t bytes) override { std::memset(device, 0, bytes); }
  void synchronize() override {}

  void matmul(Tensor out, Tensor a, Transpose ta, Tensor b, Transpose tb, bool accumulate) override {
    tinyllama::matmul(context_, out, a, ta, b, tb, accumulate);
  }

  void embedding_forward(Tensor out, Tensor table, const std::int32_t* ids) override {
    for (std::int64_t n = 0; n < out.rows; ++n)
      std::memcpy(out.f32() + n * out.stride, table.f32() + ids[n] * table.stride, static_cast<std::size_t>(out.columns) * 4);
  }
  void embedding_backward(Tensor dtable, Tensor dout, const std::int32_t* ids) override {
    for (std::int64_t n = 0; n < dout.rows; ++n)
      for (std::int64_t d = 0; d < dout.columns; ++d) dtable.f32()[ids[n] * dtable.stride + d] += dout.f32()[n * dout.stride + d];
  }

  void rms_norm_forward(Tensor out, float* rstd, Tensor sum, Tensor x, Tensor delta, const float* gain, float eps) override {
    pool_.parallel_for(out.rows, [&](std::int64_t n, int) {
      float* s = x.f32() + n * x.stride;
      if (delta.data) {
        for (std::int64_t d = 0; d < out.columns; ++d) sum.f32()[n * sum.stride + d] = s[d] + delta.f32()[n * delta.stride + d];
        s = sum.f32() + n * sum.stride;
      }
      double squares = 0;
      for (std::int64_t d = 0; d < out.columns; ++d) squares += static_cast<double>(s[d]) * s[d];
      const float r = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(out.columns) + eps));
      rstd[n] = r;
      for (std::int64_t d = 0; d < out.columns; ++d) out.f32()[n * out.stride + d] = s[d] * r * gain[d];
    });
  }
  void rms_norm_backward(Tensor dx, float* dgain, Tensor dout, Tensor x, const float* gain, const float* rstd) override {
    for (std::int64_t n = 0; n < dx.rows; ++n) {
      const float *dy = dout.f32() + n * dout.stride, *xs = x.f32() + n * x.stride;
      float* dxs = dx.f32() + n * dx.stride;
      const float r = rstd[n];
      double dot = 0;
      for (std::int64_t d = 0; d < dx.columns; ++d) dot += static_cast<double>(dy[d]) * gain[d] * xs[d];
      const float c = static_cast<float>(dot / static_cast<double>(dx.columns)) * r * r * r;
      for (std::int64_t d = 0; d < dx.columns; ++d) {
        dgain[d] += dy[d] * xs[d] * r;
        dxs[d] += dy[d] * gain[d] * r - c * xs[d];
      }
    }
  }

  void rotary(Tensor qkv, const float* cosine, const float* sine, const AttentionShape& shape, bool inverse) override {
    const std::int64_t size = shape.head_size, half = size / 2;
    pool_.parallel_for(qkv.rows, [&](std::int64_t n, int) {
      const float *c = cosine + n % shape.length * half, *s = sine + n % shape.length * half;
      for (std::int64_t h = 0; h < shape.heads + shape.kv_heads; ++h) {
        float* v = qkv.f32() + n * qkv.stride + h * size;
        for (std::int64_t i = 0; i < half; ++i) {
          const float p = v[i], q = v[i + half], sn = inverse ? -s[i] : s[i];
          v[i] = p * c[i] - q * sn;
          v[i + half] = q * c[i] + p * sn;
        }
      }
    });
  }

  void attention_forward(Tensor out, float* lse, Tensor qkv, const AttentionShape& shape) override {
    const std::int64_t size = shape.head_size, T = shape.length, group = shape.heads / shape.kv_heads;
    const float scale = 1.f / std::sqrt(static_cast<float>(size));
    pool_.parallel_for(shape.batch * shape.heads, [&](std::int64_t item, int) {
      const std::int64_t b = item / shape.heads, h = item % shape.heads;
      std::vector<float> p(static_cast<std::size_t>(T));
      for (std::int64_t t = 0; t < T; ++t) {
        const float* q = qkv.f32() + (b * T + t) * qkv.stride + h * size;
        float top = -INFINITY;
        for (std::int64_t j = 0; j <= t; ++j) {
          const float* k = qkv.f32() + (b * T + j) * qkv.stride + (shape.heads + h / group) * size;
          float s = 0;
          for (std::int64_t i = 0; i < size; ++i) s += q[i] * k[i];
          p[j] = s * scale;
          top = std::max(top, p[j]);
        }
        double total = 0;
        for (std::int64_t j = 0; j <= t; ++j) total += p[j] = std::exp(p[j] - top);
        float* o = out.f32() + (b * T + t) * out.stride + h * size;
        std::fill_n(o, size, 0.f);
        for (std::int64_t j = 0; j <= t; ++j) {
          const float* v = qkv.f32() + (b * T + j) * qkv.stride + (shape.heads + shape.kv_heads + h / group) * size;
          const float w = static_cast<float>(p[j] / total);
          for (std::int64_t i = 0; i < size; ++i) o[i] += w * v[i];
        }
        lse[(b * shape.heads + h) * T + t] = top + static_cast<float>(std::log(total));
      }
    });
  }

  void attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, const float* lse, const AttentionShape& shape) override {
    const std::int64_t size = shape.head_size, T = shape.length, group = shape.heads / shape.kv_heads;
    const float scale = 1.f / std::sqrt(static_cast<float>(size));
    pool_.parallel_for(shape.batch * shape.kv_heads, [&](std::int64_t item, int) {
      const std::int64_t b = item / shape.kv_heads, g = item % shape.kv_heads;
      for (std::int64_t t = 0; t < T; ++t) {
        float* row = dqkv.f32() + (b * T + t) * dqkv.stride;
        std::fill_n(row + g * group * size, group * size, 0.f);
        std::fill_n(row + (shape.heads + g) * size, size, 0.f);
        std::fill_n(row + (shape.heads + shape.kv_heads + g) * size, size, 0.f);
      }
      for (std::int64_t h = g * group; h < (g + 1) * group; ++h)
        for (std::int64_t t = 0; t < T; ++t) {
          const float* q = qkv.f32() + (b * T + t) * qkv.stride + h * size;
          float* dq = dqkv.f32() + (b * T + t) * dqkv.stride + h * size;
          const float *o = out.f32() + (b * T + t) * out.stride + h * size, *d = dout.f32() + (b * T + t) * dout.stride + h * size;
          float delta = 0;
          for (std::int64_t i = 0; i < size; ++i) delta += o[i] * d[i];
          for (std::int64_t j = 0; j <= t; ++j) {
            const std::int64_t k_at = (shape.heads + g) * size, v_at = (shape.heads + shape.kv_heads + g) * size;
            const float* kv = qkv.f32() + (b * T + j) * qkv.stride;
            float* dkv = dqkv.f32() + (b * T + j) * dqkv.stride;
            float s = 0, dp = 0;
            for (std::int64_t i = 0; i < size; ++i) s += q[i] * kv[k_at + i], dp += d[i] * kv[v_at + i];
            const float p = std::exp(s * scale - lse[(b * shape.heads + h) * T + t]), ds = p * (dp - delta) * scale;
            for (std::int64_t i = 0; i < size; ++i) {
              dq[i] += ds * kv[k_at + i];
              dkv[k_at + i] += ds * q[i];
              dkv[v_at + i] += p * d[i];
            }
          }
        }
    });
  }

  void swiglu_forward(Tensor act, Tensor gate_up) override {
    pool_.parallel_for(act.rows, [&](std::int64_t n, int) {
      const float* g = gate_up.f32() + n * gate_up.stride;
      for (std::int64_t f = 0; f < act.columns; ++f)
        act.f32()[n * act.stride + f] = g[f] / (1 + std::exp(-g[f])) * g[act.columns + f];
    });
  }
  void swiglu_backward(Tensor dgate_up, Tensor dact, Tensor gate_up) override {
    const std::int64_t F = dact.columns;
    pool_.parallel_for(dact.rows, [&](std::int64_t n, int) {
      for (std::int64_t f = 0; f < F; ++f) {
        const float g = gate_up.f32()[n * gate_up.stride + f], u = gate_up.f32()[n * gate_up.stride + F + f];
        const float s = 1 / (1 + std::exp(-g)), d = dact.f32()[n * dact.stride + f];
        dgate_up.f32()[n * dgate_up.stride + f] = d * u * s * (1 + g * (1 - s));
        dgate_up.f32()[n * dgate_up.stride + F + f] = d * g * s;
      }
    });
  }

  void linear_cross_entropy(float* losses, Tensor dhidden, Tensor dweight, Tensor hidden, Tensor weight, const std::int32_t* targets,
                            float scale) override {
    const std::int64_t V = weight.rows, chunk = 64;
    std::vector<float> logits(static_cast<std::size_t>(chunk * V));
    for (std::int64_t first = 0; first < hidden.rows; first += chunk) {
      const std::int64_t rows = std::min(chunk, hidden.rows - first);
      Tensor l = matrix(logits.data(), rows, V);
      Tensor h = hidden, dh = dhidden;
      h.data = hidden.f32() + first * hidden.stride, h.rows = rows;
      dh.data = dhidden.f32() + first * dhidden.stride, dh.rows = rows;
      matmul(l, h, Transpose::no, weight, Transpose::yes, false);
      pool_.parallel_for(rows, [&](std::int64_t r, int) {
        float* p = logits.data() + r * V;
        const std::int32_t target = targets[first + r];
        if (target < 0) {
          losses[first + r] = 0;
          std::fill_n(p, V, 0.f);
          return;
        }
        const float top = *std::max_element(p, p + V);
        double total = 0;
        for (std::int64_t v = 0; v < V; ++v) total += std::exp(p[v] - top);
        const float norm = top + static_cast<float>(std::log(total));
        losses[first + r] = norm - p[target];
        for (std::int64_t v = 0; v < V; ++v) p[v] = std::exp(p[v] - norm) * scale;
        p[target] -= scale;
      });
      matmul(dh, l, Transpose::no, weight, Transpose::no, false);
      matmul(dweight, l, Transpose::yes, h, Transpose::no, true);
    }
  }
  void linear_log_probability(float* log_probabilities, std::uint8_t* greedy, Tensor hidden, Tensor weight,
                              const std::int32_t* targets) override {
    const std::int64_t V = weight.rows, chunk = 64;
    std::vector<float> logits(static_cast<std::size_t>(chunk * V));
    for (std::int64_t first = 0; first < hidden.rows; first += chunk) {
      const std::int64_t rows = std::min(chunk, hidden.rows - first);
      Tensor h = hidden;
      h.data = hidden.f32() + first * hidden.stride, h.rows = rows;
      matmul(matrix(logits.data(), rows, V), h, Transpose::no, weight, Transpose::yes, false);
      for (std::int64_t r = 0; r < rows; ++r) {
        const float* p = logits.data() + r * V;
        const std::int32_t target = targets[first + r];
        const std::int64_t best = std::max_element(p, p + V) - p;
        double total = 0;
        for (std::int64_t v = 0; v < V; ++v) total += std::exp(p[v] - p[best]);
        log_probabilities[first + r] = target < 0 ? 0.f : p[target] - p[best] - static_cast<float>(std::log(total));
        greedy[first + r] = target == best;
      }
    }
  }

  void add(float* a, const float* b, std::int64_t count) override {
    for (std::int64_t i = 0; i < count; ++i) a[i] += b[i];
  }
  double squared_norm(const float* values, std::int64_t count) override {
    double total = 0;
    for (std::int64_t i = 0; i < count; ++i) total += static_cast<double>(values[i]) * values[i];
    return total;
  }
  void adamw(float* weights, float* first_moment, float* second_moment, const float* gradients, std::int64_t count,
             const AdamWArguments& arguments) override {
    const double b1 = 1 - std::pow(static_cast<double>(arguments.beta1), static_cast<double>(arguments.step));
    const double b2 = 1 - std::pow(static_cast<double>(arguments.beta2), static_cast<double>(arguments.step));
    const float step = static_cast<float>(arguments.learning_rate / b1), root = static_cast<float>(std::sqrt(b2));
    for (std::int64_t i = 0; i < count; ++i) {
      const float g = gradients[i] * arguments.gradient_scale;
      first_moment[i] += (g - first_moment[i]) * (1 - arguments.beta1);
      second_moment[i] = arguments.beta2 * second_moment[i] + (1 - arguments.beta2) * g * g;
      weights[i] *= 1 - arguments.learning_rate * arguments.weight_decay;
      weights[i] -= step * first_moment[i] / (std::sqrt(second_moment[i]) / root + arguments.epsilon);
    }
  }

 private:
  CpuContext context_;
  ThreadPool& pool_;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads) { return std::make_unique<CpuDevice>(threads); }

}  // namespace tinyllama
