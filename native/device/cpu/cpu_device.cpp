#include "native/device/cpu/cpu_device.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "native/core/error.h"
#include "native/device/cpu/attention.h"
#include "native/device/cpu/cpu_context.h"
#include "native/device/cpu/gemm.h"
#include "native/device/cpu/linear_loss.h"
#include "native/device/cpu/memory_snapshot.h"
#include "native/device/cpu/pointwise.h"
#include "native/device/cpu/stochastic_adamw.h"

namespace tinyllama {
namespace {

// Bytes of a device's living buffers, which may outlive it and end on any thread.
using Account = std::shared_ptr<std::atomic<std::size_t>>;

class CpuBuffer final : public Buffer {
 public:
  CpuBuffer(std::size_t bytes, Account account) : bytes_(bytes), account_(std::move(account)) {
    constexpr std::size_t alignment = 64;
    const std::size_t rounded = std::max(alignment, (bytes + alignment - 1) / alignment * alignment);
    data_ = std::aligned_alloc(alignment, rounded);
    if (!data_) throw Error("out of memory: cannot allocate " + std::to_string(bytes) + " bytes");
    std::memset(data_, 0, rounded);
    *account_ += bytes_;
  }
  ~CpuBuffer() override {
    std::free(data_);
    *account_ -= bytes_;
  }
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;
  void* data() const override { return data_; }
  std::size_t bytes() const override { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
  Account account_;
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) : context_(threads, select_kernels()) {}

  std::string name() const override { return std::string("cpu-") + context_.kernels.name; }
  bool in_host_memory() const override { return true; }
  std::unique_ptr<Buffer> allocate(std::size_t bytes) override { return std::make_unique<CpuBuffer>(bytes, allocated_); }
  std::size_t memory_in_use() override { return *allocated_; }
  std::size_t overhead() const override { return 0; }
  void copy_in(void* device, const void* host, std::size_t bytes) override { std::memcpy(device, host, bytes); }
  void copy_out(void* host, const void* device, std::size_t bytes) override { std::memcpy(host, device, bytes); }
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (to != from) std::memcpy(to, from, bytes);
  }
  void fill_zero(void* device, std::size_t bytes) override { std::memset(device, 0, bytes); }
  void fill_normal(float* out, std::int64_t count, std::uint64_t seed, std::int64_t first, float deviation) override {
    tinyllama::fill_normal(context_, out, count, seed, first, deviation);
  }
  void synchronize() override {}
  std::unique_ptr<MemorySnapshot> snapshot(const std::vector<MemoryRange>& ranges) override { return take_snapshot(context_.pool, ranges); }
  std::unique_ptr<Buffer> allocate_staging(std::size_t bytes) override { return allocate(bytes); }
  DataType compute_type() const override { return DataType::f32; }
  void repeat(const std::string&, const std::function<void()>& work) override { work(); }

  void matmul(Tensor out, Tensor a, Transpose transpose_a, Tensor b, Transpose transpose_b, bool accumulate) override {
    tinyllama::matmul(context_, out, a, transpose_a, b, transpose_b, accumulate);
  }
  void embedding_forward(Tensor out, Tensor table, const std::int32_t* ids) override {
    tinyllama::embedding_forward(context_, out, table, ids);
  }
  void embedding_backward(Tensor dtable, Tensor dout, const std::int32_t* ids) override {
    tinyllama::embedding_backward(context_, dtable, dout, ids);
  }
  void rms_norm_forward(Tensor out, float* rstd, Tensor sum, Tensor x, Tensor delta, const float* gain, float eps) override {
    tinyllama::rms_norm_forward(context_, out, rstd, sum, x, delta, gain, eps);
  }
  void rms_norm_again(Tensor out, Tensor x, const float* gain, const float* rstd) override {
    tinyllama::rms_norm_again(context_, out, x, gain, rstd);
  }
  void rms_norm_backward(Tensor dx, float* dgain, Tensor normed, Tensor dout, Tensor x, const float* gain, const float* rstd) override {
    tinyllama::rms_norm_backward(context_, dx, dgain, normed, dout, x, gain, rstd);
  }
  void rotary(Tensor qkv, const float* cosine, const float* sine, const AttentionShape& shape, bool inverse) override {
    tinyllama::rotary(context_, qkv, cosine, sine, shape, inverse);
  }
  void attention_forward(Tensor out, float* lse, Tensor qkv, const AttentionShape& shape, const std::int32_t* first_keys) override {
    tinyllama::attention_forward(context_, out, lse, qkv, shape, first_keys);
  }
  void attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, const float* lse, const AttentionShape& shape,
                          const std::int32_t* first_keys) override {
    tinyllama::attention_backward(context_, dqkv, dout, qkv, out, lse, shape, first_keys);
  }
  void swiglu_forward(Tensor act, Tensor gate_up) override { tinyllama::swiglu_forward(context_, act, gate_up); }
  void swiglu_backward(Tensor dgate_up, Tensor act, Tensor dact, Tensor gate_up) override {
    tinyllama::swiglu_backward(context_, dgate_up, act, dact, gate_up);
  }
  void linear_cross_entropy(float* losses, Tensor dhidden, Tensor dweight, Tensor hidden, Tensor weight, const std::int32_t* targets,
                            const float* scale) override {
    tinyllama::linear_cross_entropy(context_, losses, dhidden, dweight, hidden, weight, targets, *scale);
  }
  void linear_log_probability(float* log_probabilities, std::uint8_t* greedy, Tensor hidden, Tensor weight,
                              const std::int32_t* targets) override {
    tinyllama::linear_log_probability(context_, log_probabilities, greedy, hidden, weight, targets);
  }
  void add(float* a, const float* b, std::int64_t count) override { tinyllama::add(context_, a, b, count); }
  void squared_norm(double* sums, const float* values, std::int64_t count) override { tinyllama::squared_norm(context_, sums, values, count); }
  void round_weights(void* rounded, const float* weights, std::int64_t count) override {
    tinyllama::round_weights(context_, static_cast<std::uint16_t*>(rounded), weights, count);
  }
  void adamw(float* weights, void*, float* first_moment, float* second_moment, float* gradients, std::int64_t count,
             const AdamWArguments& arguments) override {
    tinyllama::adamw(context_, weights, first_moment, second_moment, gradients, count, arguments);
  }
  void widen(float* out, const std::uint16_t* values, std::int64_t count) override { tinyllama::widen(context_, out, values, count); }
  void adamw_stochastic(std::uint16_t* weights, std::uint16_t* first_moment, std::uint16_t* second_moment, float* gradients, std::int64_t count,
                        std::int64_t first, std::uint64_t seed, const AdamWArguments& arguments) override {
    tinyllama::adamw_stochastic(context_, weights, first_moment, second_moment, gradients, count, first, seed, arguments);
  }

 private:
  CpuContext context_;
  Account allocated_ = std::make_shared<std::atomic<std::size_t>>(0);
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(int threads) { return std::make_unique<CpuDevice>(threads); }

}  // namespace tinyllama
