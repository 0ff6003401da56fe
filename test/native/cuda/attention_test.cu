// Attention on the GPU against fp64 on the CPU. bf16: the root mean square of the error is at most twice that of a straightforward bf16
// implementation, for out, dQ, dK and dV each. Outputs, scratch memory, row padding and everything behind the matrices are NaN before
// each run; every run happens twice and must give the same bits. Where the GPU has
// kernels of its own, those for all GPUs are checked too.
#include <cuda_bf16.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "native/device/cuda/attention.h"
#include "native/device/cuda/attention_mma.h"
#include "native/device/cuda/attention_wgmma.h"
#include "test/native/cuda/attention_reference.h"

namespace tinyllama::check {
namespace {

int failures = 0;

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count) { CHECK_CUDA(cudaMalloc(&data_, count * sizeof(T))); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    CHECK_CUDA(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  void poison() { CHECK_CUDA(cudaMemset(data_, 0xff, count_ * sizeof(T))); }
  std::vector<T> values() const {
    std::vector<T> result(count_);
    CHECK_CUDA(cudaMemcpy(result.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return result;
  }

 private:
  T* data_ = nullptr;
  std::size_t count_;
};

double to_double(float value) { return value; }
double to_double(__nv_bfloat16 value) { return __bfloat162float(value); }
void from_double(float& target, double value) { target = static_cast<float>(value); }
void from_double(__nv_bfloat16& target, double value) { target = __float2bfloat16_rn(static_cast<float>(value)); }

constexpr std::size_t rows_behind = 128;  // of NaN

// Rows of `width` values with NaN up to `stride` and behind the last row.
template <class T>
std::vector<T> padded(const Values& values, std::int64_t width, std::int64_t stride) {
  T poison;
  from_double(poison, std::nan(""));
  std::vector<T> result((values.size() / static_cast<std::size_t>(width) + rows_behind) * static_cast<std::size_t>(stride), poison);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) / width, column = static_cast<std::int64_t>(i) % width;
    from_double(result[static_cast<std::size_t>(row * stride + column)], values[i]);
  }
  return result;
}

// The values of the rows; adds to `stray` what is written elsewhere.
template <class T>
Values dense(const std::vector<T>& memory, std::int64_t rows, std::int64_t width, std::int64_t stride, long& stray) {
  Values result;
  for (std::size_t i = 0; i < memory.size(); ++i) {
    const bool inside = static_cast<std::int64_t>(i) / stride < rows && static_cast<std::int64_t>(i) % stride < width;
    if (inside) result.push_back(to_double(memory[i]));
    else if (!std::isnan(to_double(memory[i]))) ++stray;
  }
  return result;
}

struct Worst {
  double ratio = 0;
  std::string what;
};

template <class T>
class AttentionCheck {
 public:
  AttentionCheck(CudaContext& context, const AttentionShape& shape, InputKind kind, bool documents, std::uint64_t seed)
      : context_(context),
        shape_(shape),
        problem_(make_problem(shape, kind, documents, sizeof(T) == 2, seed)),
        name_("B" + std::to_string(shape.batch) + " T" + std::to_string(shape.length) + " H" + std::to_string(shape.heads) + " G" +
              std::to_string(shape.kv_heads) + " S" + std::to_string(shape.head_size) + (sizeof(T) == 2 ? " bf16 " : " f32 ") + name_of(kind) +
              (documents ? ", documents" : "")) {}

  void run(Worst& worst) {
    const AttentionResult want = attention_reference(problem_, false);
    const AttentionResult naive = sizeof(T) == 2 ? attention_reference(problem_, true) : want;
    const std::string name = name_;
    const auto check_path = [&](const char* path, decltype(forward_) forward, decltype(backward_) backward) {
      forward_ = forward, backward_ = backward;
      name_ = name + path;
      check_result(on_device(), want, naive, worst);
    };
    check_path("", cuda::attention_forward, cuda::attention_backward);
    if (sizeof(T) != 2) return;
    if ((shape_.head_size == 64 || shape_.head_size == 128) && cuda::attention_wgmma_available(context_))
      check_path(", mma.sync", cuda::attention_mma_forward, cuda::attention_mma_backward);
    if (shape_.head_size == 128) check_path(", small tiles", cuda::attention_mma_forward, cuda::attention_mma_backward_128_small);
  }

 private:
  void check_result(const AttentionResult& got, const AttentionResult& want, const AttentionResult& naive, Worst& worst) {
    const std::int64_t width = qkv_width(), out_width = shape_.heads * shape_.head_size, kv_width = shape_.kv_heads * shape_.head_size;
    compare("out", got.out, want.out, naive.out, out_width, 0, out_width, worst);
    compare("dq", got.dqkv, want.dqkv, naive.dqkv, width, 0, out_width, worst);
    compare("dk", got.dqkv, want.dqkv, naive.dqkv, width, out_width, kv_width, worst);
    compare("dv", got.dqkv, want.dqkv, naive.dqkv, width, out_width + kv_width, kv_width, worst);
    double lse_error = 0;
    for (std::size_t i = 0; i < got.lse.size(); ++i) {
      const double error = std::abs(got.lse[i] - want.lse[i]) / (1 + std::abs(want.lse[i]));
      lse_error = error <= lse_error ? lse_error : error;
    }
    if (!(lse_error <= 1e-5)) fail("lse: error " + std::to_string(lse_error));
  }

  std::int64_t qkv_width() const { return (shape_.heads + 2 * shape_.kv_heads) * shape_.head_size; }
  void fail(const std::string& what) {
    ++failures;
    std::printf("FAILED %s: %s\n", name_.c_str(), what.c_str());
  }

  void compare(const char* what, const Values& got, const Values& want, const Values& naive, std::int64_t width, std::int64_t first,
               std::int64_t count, Worst& worst) {
    const ErrorSize error = error_of(got, want, width, first, count), allowed = error_of(naive, want, width, first, count);
    const double size = error_of(want, want, width, 0, width).reference_rms();
    // The floor is for gradients that cancel to nothing, where both errors are of the size of fp32's own.
    const double limit = sizeof(T) == 2 ? 2 * allowed.rms() + 1e-4 * size : 3e-6 * (1 + size);
    const double largest_limit = sizeof(T) == 2 ? 4 * allowed.largest + 1e-3 * size : 1e-4 * (1 + size);
    if (!(error.rms() <= limit && error.largest <= largest_limit)) {
      char text[200];
      std::snprintf(text, sizeof text, "%s: error rms %.3e (limit %.3e), largest %.3e (limit %.3e)", what, error.rms(), limit, error.largest,
                    largest_limit);
      fail(text);
    }
    if (!(error.rms() / limit <= worst.ratio)) worst = {error.rms() / limit, name_ + " " + what};
  }

  AttentionResult on_device() {
    const std::int64_t rows = shape_.batch * shape_.length, width = qkv_width(), out_width = shape_.heads * shape_.head_size;
    const std::int64_t stride = width + 8, out_stride = out_width + 16;
    const DataType type = sizeof(T) == 2 ? DataType::bf16 : DataType::f32;
    DeviceArray<T> qkv(padded<T>(problem_.qkv, width, stride)), dout(padded<T>(problem_.dout, out_width, out_stride));
    DeviceArray<T> out((static_cast<std::size_t>(rows) + rows_behind) * static_cast<std::size_t>(out_stride));
    DeviceArray<T> dqkv((static_cast<std::size_t>(rows) + rows_behind) * static_cast<std::size_t>(stride));
    DeviceArray<float> lse(static_cast<std::size_t>(shape_.batch * shape_.heads * shape_.length));
    std::unique_ptr<DeviceArray<std::int32_t>> first_keys;
    if (!problem_.first_keys.empty()) first_keys = std::make_unique<DeviceArray<std::int32_t>>(problem_.first_keys);
    const std::int32_t* first = first_keys ? first_keys->data() : nullptr;
    const auto view = [&](T* data, std::int64_t columns, std::int64_t row_stride) { return Tensor{data, type, rows, columns, row_stride}; };

    std::vector<T> outs, dqkvs;
    std::vector<float> lses;
    for (int repeat = 0; repeat < 2; ++repeat) {
      out.poison(), dqkv.poison(), lse.poison();
      if (context_.scratch_bytes() > 0) CHECK_CUDA(cudaMemset(context_.scratch(1), 0xff, context_.scratch_bytes()));
      CHECK_CUDA(cudaDeviceSynchronize());
      forward_(context_, view(out.data(), out_width, out_stride), lse.data(), view(qkv.data(), width, stride), shape_, first);
      backward_(context_, view(dqkv.data(), width, stride), view(dout.data(), out_width, out_stride), view(qkv.data(), width, stride),
               view(out.data(), out_width, out_stride), lse.data(), shape_, first);
      CHECK_CUDA(cudaStreamSynchronize(context_.stream()));
      auto out_now = out.values();
      auto dqkv_now = dqkv.values();
      auto lse_now = lse.values();
      if (repeat == 1 && (std::memcmp(out_now.data(), outs.data(), outs.size() * sizeof(T)) != 0 ||
                          std::memcmp(dqkv_now.data(), dqkvs.data(), dqkvs.size() * sizeof(T)) != 0 ||
                          std::memcmp(lse_now.data(), lses.data(), lses.size() * sizeof(float)) != 0))
        fail("a second run gave other bits");
      outs = std::move(out_now), dqkvs = std::move(dqkv_now), lses = std::move(lse_now);
    }
    long stray = 0;
    AttentionResult result{dense(outs, rows, out_width, out_stride, stray), Values(lses.begin(), lses.end()),
                           dense(dqkvs, rows, width, stride, stray)};
    if (stray > 0) fail(std::to_string(stray) + " values written outside of the matrices");
    return result;
  }

  CudaContext& context_;
  AttentionShape shape_;
  AttentionProblem problem_;
  std::string name_;
  // What is tested: the engine's choice, or kernels that it would take on another GPU.
  decltype(&cuda::attention_forward) forward_ = nullptr;
  decltype(&cuda::attention_backward) backward_ = nullptr;
};

template <class T>
void check(CudaContext& context, const char* title, const std::vector<AttentionShape>& shapes, const std::vector<InputKind>& kinds) {
  Worst worst;
  int cases = 0;
  const int failures_before = failures;
  for (const AttentionShape& shape : shapes)
    for (const InputKind kind : kinds)
      for (const bool documents : {false, true}) {
        AttentionCheck<T>(context, shape, kind, documents, static_cast<std::uint64_t>(++cases)).run(worst);
        if (failures > 20) return;
      }
  std::printf("%-44s %4d cases  %3d failures  worst error %.2f of its limit (%s)\n", title, cases, failures - failures_before, worst.ratio,
              worst.what.c_str());
}

void check_all(CudaContext& context) {
  for (const std::int64_t size : {64, 128}) {
    std::vector<AttentionShape> lengths, ratios;
    for (const std::int64_t length : {1, 5, 63, 64, 65, 127, 128, 129, 200, 257, 513}) lengths.push_back({2, length, 4, 2, size});
    for (const std::int64_t length : {65, 200, 513})
      for (const std::int64_t group_heads : {1, 4, 8}) ratios.push_back({1, length, 8, 8 / group_heads, size});
    const std::string name = "head size " + std::to_string(size);
    check<__nv_bfloat16>(context, (name + ": lengths").c_str(), lengths, {InputKind::normal});
    check<__nv_bfloat16>(context, (name + ": adversarial, heads per group").c_str(), ratios,
                         {InputKind::normal, InputKind::large, InputKind::constant, InputKind::one_hot});
    check<__nv_bfloat16>(context, (name + ": long").c_str(), {{1, 2048, 8, 1, size}, {9, 1024, 4, 2, size}}, {InputKind::normal});
  }
  std::vector<AttentionShape> small, sizes;
  for (const std::int64_t length : {1, 5, 31, 32, 33, 200}) small.push_back({2, length, 4, 2, 16});
  for (const std::int64_t size : {8, 24, 32, 48, 64, 80, 128}) sizes.push_back({1, 97, 4, 1, size});
  check<float>(context, "plain f32: lengths", small, {InputKind::normal, InputKind::one_hot});
  check<float>(context, "plain f32: head sizes", sizes, {InputKind::normal});
  sizes.clear();
  for (const std::int64_t size : {8, 16, 32, 96, 200}) sizes.push_back({1, 97, 4, 1, size});
  check<__nv_bfloat16>(context, "plain bf16: head sizes", sizes, {InputKind::normal, InputKind::large});
}

}  // namespace
}  // namespace tinyllama::check

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    tinyllama::CudaContext context(0);
    tinyllama::check::check_all(context);
  } catch (const std::exception& error) {
    std::printf("FAILED %s\n", error.what());
    return 1;
  }
  std::printf("%s\n", tinyllama::check::failures == 0 ? "attention: all correct" : "attention: FAILED");
  return tinyllama::check::failures == 0 ? 0 : 1;
}
