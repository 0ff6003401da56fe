#include "native/model/kernel_timing.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>

namespace tinyllama {
namespace {

using Clock = std::chrono::steady_clock;

class Bench {
 public:
  Bench(Device& device, const LlamaConfig& config, std::int64_t batch, std::int64_t length, Recompute recompute, int rounds, DataType state_type)
      : device_(device), config_(config), shape_{batch, length, config.num_attention_heads, config.num_key_value_heads, config.head_dim},
        rows_(batch * length), layers_(config.num_hidden_layers), recompute_(recompute), rounds_(rounds), state_type_(state_type) {}

  std::vector<KernelTiming> run() {
    products();
    attention();
    norms();
    activation();
    edges();
    optimizer();
    return std::move(timings_);
  }

 private:
  struct Cost {
    double bytes, operations;
    std::int64_t calls;
    bool per_step = false;
  };

  // Random values of the compute type, or of fp32.
  Tensor random(std::int64_t rows, std::int64_t columns, bool f32 = false) {
    const std::int64_t count = rows * columns;
    float* wide = static_cast<float*>(hold(static_cast<std::size_t>(count) * sizeof(float)));
    device_.fill_normal(wide, count, ++seed_, 0, 0.05f);
    const Tensor result = matrix(wide, rows, columns);
    return f32 || device_.compute_type() == DataType::f32 ? result : in_halves(result);
  }
  // The last buffer's values, rounded to bf16 and in its place.
  Tensor in_halves(const Tensor& wide) {
    const std::int64_t count = wide.rows * wide.columns;
    void* narrow = hold(static_cast<std::size_t>(count) * 2);
    device_.round_weights(narrow, wide.f32(), count);
    device_.synchronize();
    buffers_.erase(buffers_.end() - 2);
    return matrix(narrow, DataType::bf16, wide.rows, wide.columns);
  }
  void* hold(std::size_t bytes) {
    buffers_.push_back(device_.allocate(bytes));
    return buffers_.back()->data();
  }
  double bytes(const Tensor& tensor) const { return static_cast<double>(tensor.rows * tensor.columns * bytes_of(tensor.type)); }

  void time(const std::string& name, const Cost& cost, const std::function<void()>& call) {
    call();
    device_.synchronize();
    std::vector<double> seconds;
    for (int round = 0; round < rounds_; ++round) {
      constexpr int calls = 3;
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < calls; ++i) call();
      device_.synchronize();
      seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count() / calls);
    }
    std::nth_element(seconds.begin(), seconds.begin() + rounds_ / 2, seconds.end());
    timings_.push_back({name, seconds[static_cast<std::size_t>(rounds_ / 2)], cost.bytes, cost.operations, cost.calls, cost.per_step});
  }

  // y = x W' and its two gradients.
  void product(const std::string& name, std::int64_t in, std::int64_t out, std::int64_t forward_calls) {
    const Tensor x = random(rows_, in), w = random(out, in), y = random(rows_, out), dw = random(out, in, true);
    const double operations = 2.0 * static_cast<double>(rows_) * static_cast<double>(in) * static_cast<double>(out);
    const double moved = bytes(x) + bytes(w) + bytes(y);
    time(name + " forward", {moved, operations, forward_calls}, [&] { device_.matmul(y, x, Transpose::no, w, Transpose::yes, false); });
    time(name + " input gradient", {moved, operations, layers_}, [&] { device_.matmul(x, y, Transpose::no, w, Transpose::no, false); });
    time(name + " weight gradient", {bytes(x) + bytes(y) + 2 * bytes(dw), operations, layers_},
         [&] { device_.matmul(dw, y, Transpose::yes, x, Transpose::no, true); });
    buffers_.clear();
  }

  void products() {
    const std::int64_t width = config_.hidden_size, feed_forward = config_.intermediate_size;
    const std::int64_t all_again = recompute_ == Recompute::full ? 2 * layers_ : layers_;
    const std::int64_t expanded = recompute_ == Recompute::full || recompute_ == Recompute::gate_up ? 2 * layers_ : layers_;
    product("qkv", width, config_.qkv_width(), all_again);
    product("attention output", config_.query_width(), width, all_again);
    product("gate and up", width, 2 * feed_forward, expanded);
    product("down", feed_forward, width, layers_);
  }

  void attention() {
    const Tensor qkv = random(rows_, config_.qkv_width()), out = random(rows_, config_.query_width());
    const Tensor dout = random(rows_, config_.query_width()), dqkv = random(rows_, config_.qkv_width());
    float* lse = static_cast<float*>(hold(static_cast<std::size_t>(rows_ * config_.num_attention_heads) * sizeof(float)));
    const double scores = static_cast<double>(shape_.batch * shape_.heads) * static_cast<double>(shape_.length) *
                          static_cast<double>(shape_.length) / 2 * static_cast<double>(shape_.head_size);
    const double statistics = static_cast<double>(rows_ * shape_.heads) * 4;
    time("attention forward", {bytes(qkv) + bytes(out) + statistics, 4 * scores, recompute_ == Recompute::full ? 2 * layers_ : layers_},
         [&] { device_.attention_forward(out, lse, qkv, shape_, nullptr); });
    time("attention backward", {2 * bytes(qkv) + 2 * bytes(out) + statistics, 10 * scores, layers_},
         [&] { device_.attention_backward(dqkv, dout, qkv, out, lse, shape_, nullptr); });
    const std::int64_t half = shape_.head_size / 2;
    const Tensor table = random(2 * shape_.length, half, true);
    const double rotated = 2 * static_cast<double>(rows_ * (shape_.heads + shape_.kv_heads) * shape_.head_size * bytes_of(qkv.type));
    time("rotary", {rotated, 0, (recompute_ == Recompute::full ? 3 : 2) * layers_},
         [&] { device_.rotary(qkv, table.f32(), table.f32() + shape_.length * half, shape_, false); });
    buffers_.clear();
  }

  void norms() {
    const std::int64_t width = config_.hidden_size;
    const Tensor x = random(rows_, width), delta = random(rows_, width), sum = random(rows_, width), out = random(rows_, width);
    const Tensor gain = random(1, width, true), dgain = random(1, width, true), rstd = random(1, rows_, true);
    time("norm forward", {4 * bytes(x), 0, 2 * layers_ + 1},
         [&] { device_.rms_norm_forward(out, rstd.f32(), sum, x, delta, gain.f32(), 1e-5f); });
    const bool again = recompute_ != Recompute::none;
    time("norm backward", {(again ? 5 : 4) * bytes(x), 0, 2 * layers_ + 1},
         [&] { device_.rms_norm_backward(sum, dgain.f32(), again ? out : Tensor{}, delta, x, gain.f32(), rstd.f32()); });
    buffers_.clear();
  }

  void activation() {
    const Tensor gate_up = random(rows_, 2 * config_.intermediate_size), act = random(rows_, config_.intermediate_size);
    time("SwiGLU forward", {bytes(gate_up) + bytes(act), 0, layers_}, [&] { device_.swiglu_forward(act, gate_up); });
    const bool again = recompute_ != Recompute::none;
    time("SwiGLU backward", {2 * bytes(gate_up) + (again ? 2 : 1) * bytes(act), 0, layers_},
         [&] { device_.swiglu_backward(gate_up, again ? act : Tensor{}, act, gate_up); });
    buffers_.clear();
  }

  void edges() {
    const std::int64_t width = config_.hidden_size, vocabulary = config_.vocab_size;
    const Tensor hidden = random(rows_, width), dhidden = random(rows_, width), weight = random(vocabulary, width);
    const Tensor dweight = random(vocabulary, width, true), losses = random(1, rows_, true);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(rows_));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i * 7919 % static_cast<std::size_t>(vocabulary));
    auto* tokens = static_cast<std::int32_t*>(hold(ids.size() * sizeof(std::int32_t)));
    device_.copy_in(tokens, ids.data(), ids.size() * sizeof(std::int32_t));
    auto* scale = static_cast<float*>(hold(sizeof(float)));
    const double products = 6.0 * static_cast<double>(rows_) * static_cast<double>(width) * static_cast<double>(vocabulary);
    time("output and loss", {2 * bytes(hidden) + bytes(weight) + 2 * bytes(dweight), products, 1},
         [&] { device_.linear_cross_entropy(losses.f32(), dhidden, dweight, hidden, weight, tokens, scale); });
    time("embedding forward", {2 * bytes(hidden), 0, 1}, [&] { device_.embedding_forward(hidden, weight, tokens); });
    time("embedding backward", {bytes(hidden) + 2 * bytes(dweight), 0, 1}, [&] { device_.embedding_backward(dweight, hidden, tokens); });
    buffers_.clear();
  }

  void optimizer() {
    const std::int64_t count = parameter_layout(config_).count;
    const bool rounds = device_.compute_type() != DataType::f32;
    const AdamWArguments arguments{1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 10, 1.0f};
    const Tensor gradients = random(1, count, true);
    if (state_type_ == DataType::bf16) {
      auto halves = [&] { return static_cast<std::uint16_t*>(in_halves(random(1, count, true)).data); };
      std::uint16_t *weights = halves(), *first = halves();
      auto* second = static_cast<std::uint16_t*>(hold(static_cast<std::size_t>(count) * 2));
      gradient_norm(gradients);
      time("AdamW in bf16", {20.0 * static_cast<double>(count), 0, 1, true},
           [&] { device_.adamw_stochastic(weights, first, second, gradients.f32(), count, 0, 1, arguments); });
      buffers_.clear();
      return;
    }
    const Tensor weights = random(1, count, true), first = random(1, count, true);
    auto* second = static_cast<float*>(hold(static_cast<std::size_t>(count) * sizeof(float)));
    void* rounded = rounds ? hold(static_cast<std::size_t>(count) * 2) : nullptr;
    gradient_norm(gradients);
    time("AdamW", {(rounds ? 34.0 : 32.0) * static_cast<double>(count), 0, 1, true},
         [&] { device_.adamw(weights.f32(), rounded, first.f32(), second, gradients.f32(), count, arguments); });
    buffers_.clear();
  }

  void gradient_norm(const Tensor& gradients) {
    const std::int64_t count = gradients.columns;
    auto* sums = static_cast<double*>(hold(static_cast<std::size_t>(count / 4096 + 1) * sizeof(double)));
    time("gradient norm", {4.0 * static_cast<double>(count), 0, 1, true}, [&] { device_.squared_norm(sums, gradients.f32(), count); });
  }

  Device& device_;
  const LlamaConfig& config_;
  AttentionShape shape_;
  std::int64_t rows_, layers_;
  Recompute recompute_;
  int rounds_;
  DataType state_type_;
  std::uint64_t seed_ = 0;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<KernelTiming> timings_;
};

}  // namespace

std::vector<KernelTiming> time_kernels(Device& device, const LlamaConfig& config, std::int64_t batch, std::int64_t length, Recompute recompute,
                                       int rounds, DataType state_type) {
  return Bench(device, config, batch, length, recompute, rounds, state_type).run();
}

}  // namespace tinyllama
