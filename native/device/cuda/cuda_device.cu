// The Device of one GPU: every operation is issued on one stream, in order.
#include <algorithm>
#include <cstdio>
#include <iterator>
#include <memory>
#include <string>

#include "native/core/error.h"
#include "native/device/cuda/attention.h"
#include "native/device/cuda/contention.h"
#include "native/device/cuda/cuda_context.h"
#include "native/device/cuda/library.h"
#include "native/device/cuda/linear_loss.h"
#include "native/device/cuda/matmul.h"
#include "native/device/cuda/nccl_communicator.h"
#include "native/device/cuda/nccl_library.h"
#include "native/device/cuda/pointwise.h"
#include "native/device/cuda/recorder.h"
#include "native/device/cuda/snapshot_memory.h"

namespace tinyllama {
namespace {

std::string in_mebibytes(std::size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

class CudaBuffer final : public Buffer {
 public:
  explicit CudaBuffer(std::size_t bytes) : bytes_(bytes) {
    const cudaError_t status = cudaMalloc(&data_, bytes == 0 ? 1 : bytes);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // not sticky: the device goes on
      std::size_t free = 0, total = 0;
      CHECK_CUDA(cudaMemGetInfo(&free, &total));
      throw Error("out of memory: " + in_mebibytes(bytes) + " were asked for, " + in_mebibytes(free) + " of the GPU's " + in_mebibytes(total) +
                  " are free");
    }
    CHECK_CUDA(status);
  }
  ~CudaBuffer() override { cudaFree(data_); }
  CudaBuffer(const CudaBuffer&) = delete;
  CudaBuffer& operator=(const CudaBuffer&) = delete;
  void* data() const override { return data_; }
  std::size_t bytes() const override { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(const CudaOptions& options)
      : options_(options), context_(options.ordinal), matmul_(cuda::make_matmul_engine(context_)), recorder_(context_),
        snapshots_(std::make_shared<SnapshotMemory>(options.ordinal)) {}

  std::string name() const override {
    return std::string(context_.properties().name) + (options_.compute_type == DataType::bf16 ? ", bf16, " : ", fp32, ") + matmul_->describe();
  }
  DataType compute_type() const override { return options_.compute_type; }

  bool in_host_memory() const override { return false; }

  std::unique_ptr<Buffer> allocate(std::size_t bytes) override {
    CudaContext& context = bind();
    auto buffer = make_buffer(bytes);
    CHECK_CUDA(cudaMemsetAsync(buffer->data(), 0, bytes, context.stream()));
    return buffer;
  }
  std::size_t memory_in_use() override {
    bind();
    std::size_t free = 0, total = 0;
    CHECK_CUDA(cudaMemGetInfo(&free, &total));
    return total - free;
  }
  std::size_t overhead() const override { return context_.scratch_bytes() + matmul_->memory(); }
  void copy_in(void* device, const void* host, std::size_t bytes) override {
    CHECK_CUDA(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, bind().stream()));
  }
  void copy_out(void* host, const void* device, std::size_t bytes) override {
    CHECK_CUDA(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, bind().stream()));
  }
  void copy(void* to, const void* from, std::size_t bytes) override {
    if (to != from) CHECK_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, bind().stream()));
  }
  void fill_zero(void* device, std::size_t bytes) override { CHECK_CUDA(cudaMemsetAsync(device, 0, bytes, bind().stream())); }
  void fill_normal(float* out, std::int64_t count, std::uint64_t seed, std::int64_t first, float deviation) override {
    cuda::fill_normal(bind(), out, count, seed, first, deviation);
  }
  std::unique_ptr<MemorySnapshot> snapshot(const std::vector<MemoryRange>& ranges) override {
    return snapshots_->take(bind().stream(), ranges);
  }
  std::unique_ptr<Buffer> allocate_staging(std::size_t bytes) override { return snapshots_->staging(bytes); }
  void synchronize() override { CHECK_CUDA(cudaStreamSynchronize(bind().stream())); }
  void repeat(const std::string& key, const std::function<void()>& work) override {
    bind();
    if (options_.graphs) {
      recorder_.repeat(key, work);
    } else {
      work();
    }
  }

  void matmul(Tensor out, Tensor a, Transpose transpose_a, Tensor b, Transpose transpose_b, bool accumulate) override {
    bind();
    matmul_->matmul(out, a, transpose_a, b, transpose_b, accumulate);
  }
  void embedding_forward(Tensor out, Tensor table, const std::int32_t* ids) override { cuda::embedding_forward(bind(), out, table, ids); }
  void embedding_backward(Tensor dtable, Tensor dout, const std::int32_t* ids) override { cuda::embedding_backward(bind(), dtable, dout, ids); }
  void rms_norm_forward(Tensor out, float* rstd, Tensor sum, Tensor x, Tensor delta, const float* gain, float eps) override {
    cuda::rms_norm_forward(bind(), out, rstd, sum, x, delta, gain, eps);
  }
  void rms_norm_again(Tensor out, Tensor x, const float* gain, const float* rstd) override { cuda::rms_norm_again(bind(), out, x, gain, rstd); }
  void rms_norm_backward(Tensor dx, float* dgain, Tensor normed, Tensor dout, Tensor x, const float* gain, const float* rstd) override {
    cuda::rms_norm_backward(bind(), dx, dgain, normed, dout, x, gain, rstd);
  }
  void rotary(Tensor qkv, const float* cosine, const float* sine, const AttentionShape& shape, bool inverse) override {
    cuda::rotary(bind(), qkv, cosine, sine, shape, inverse);
  }
  void attention_forward(Tensor out, float* lse, Tensor qkv, const AttentionShape& shape, const std::int32_t* first_keys) override {
    cuda::attention_forward(bind(), out, lse, qkv, shape, first_keys);
  }
  void attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, const float* lse, const AttentionShape& shape,
                          const std::int32_t* first_keys) override {
    cuda::attention_backward(bind(), dqkv, dout, qkv, out, lse, shape, first_keys);
  }
  void swiglu_forward(Tensor act, Tensor gate_up) override { cuda::swiglu_forward(bind(), act, gate_up); }
  void swiglu_backward(Tensor dgate_up, Tensor act, Tensor dact, Tensor gate_up) override {
    cuda::swiglu_backward(bind(), dgate_up, act, dact, gate_up);
  }
  void linear_cross_entropy(float* losses, Tensor dhidden, Tensor dweight, Tensor hidden, Tensor weight, const std::int32_t* targets,
                            const float* scale) override {
    cuda::linear_cross_entropy(bind(), *matmul_, losses, dhidden, dweight, hidden, weight, targets, scale);
  }
  void linear_log_probability(float* log_probabilities, std::uint8_t* greedy, Tensor hidden, Tensor weight,
                              const std::int32_t* targets) override {
    cuda::linear_log_probability(bind(), *matmul_, log_probabilities, greedy, hidden, weight, targets);
  }
  void add(float* a, const float* b, std::int64_t count) override { cuda::add(bind(), a, b, count); }
  void squared_norm(double* sums, const float* values, std::int64_t count) override { cuda::squared_norm(bind(), sums, values, count); }
  void round_weights(void* rounded, const float* weights, std::int64_t count) override { cuda::round_weights(bind(), rounded, weights, count); }
  void adamw(float* weights, void* rounded, float* first_moment, float* second_moment, float* gradients, std::int64_t count,
             const AdamWArguments& arguments) override {
    cuda::adamw(bind(), weights, rounded, first_moment, second_moment, gradients, count, arguments);
  }
  void widen(float* out, const std::uint16_t* values, std::int64_t count) override { cuda::widen(bind(), out, values, count); }
  void adamw_stochastic(std::uint16_t* weights, std::uint16_t* first_moment, std::uint16_t* second_moment, float* gradients, std::int64_t count,
                        std::int64_t first, std::uint64_t seed, const AdamWArguments& arguments) override {
    cuda::adamw_stochastic(bind(), weights, first_moment, second_moment, gradients, count, first, seed, arguments);
  }

  // The context, as the calling thread's current one. Calls come from several threads, one at a time; CUDA's current device belongs to the thread.
  CudaContext& bind() {
    CHECK_CUDA(cudaSetDevice(options_.ordinal));
    return context_;
  }

 private:
  // What snapshots keep for the next one goes first where memory is short.
  std::unique_ptr<CudaBuffer> make_buffer(std::size_t bytes) {
    std::size_t free = 0, total = 0;
    CHECK_CUDA(cudaMemGetInfo(&free, &total));
    if (free < bytes) snapshots_->release_unused();
    return std::make_unique<CudaBuffer>(bytes);
  }

  CudaOptions options_;
  CudaContext context_;
  std::unique_ptr<cuda::MatmulEngine> matmul_;
  cuda::Recorder recorder_;
  std::shared_ptr<SnapshotMemory> snapshots_;  // snapshots hold it too
};

void say(char* error, std::size_t error_size, const char* what) { std::snprintf(error, error_size, "%s", what); }

int gpus(CudaGpu* list, int capacity, char* error, std::size_t error_size) {
  try {
    int count = 0;
    CHECK_CUDA(cudaGetDeviceCount(&count));
    for (int ordinal = 0; ordinal < count && ordinal < capacity; ++ordinal) {
      cudaDeviceProp properties{};
      CHECK_CUDA(cudaGetDeviceProperties(&properties, ordinal));
      CudaGpu& gpu = list[ordinal];
      std::snprintf(gpu.name, sizeof(gpu.name), "%s", properties.name);
      gpu.memory = properties.totalGlobalMem;
      gpu.major = properties.major;
      gpu.minor = properties.minor;
      gpu.multiprocessors = properties.multiProcessorCount;
    }
    return count;
  } catch (const std::exception& cause) {
    cudaGetLastError();
    say(error, error_size, cause.what());
    return -1;
  }
}

Device* open(const CudaOptions& options, char* error, std::size_t error_size) {
  try {
    return std::make_unique<CudaDevice>(options).release();
  } catch (const std::exception& cause) {
    cudaGetLastError();
    say(error, error_size, cause.what());
    return nullptr;
  }
}

bool make_nccl_id(NcclId& id, char* error, std::size_t error_size) {
  try {
    const nccl::Library& library = nccl::Library::find();
    nccl::UniqueId made;
    if (const nccl::Status status = library.functions().ncclGetUniqueId(&made); status != nccl::status_success)
      library.fail(status, "ncclGetUniqueId", nullptr);
    std::copy(std::begin(made.bytes), std::end(made.bytes), id.bytes);
    return true;
  } catch (const std::exception& cause) {
    say(error, error_size, cause.what());
    return false;
  }
}

Communicator* open_nccl(Device& device, const NcclOptions& options, char* error, std::size_t error_size) {
  try {
    return cuda::make_nccl_communicator(static_cast<CudaDevice&>(device).bind(), options).release();
  } catch (const std::exception& cause) {
    cudaGetLastError();
    say(error, error_size, cause.what());
    return nullptr;
  }
}

Contention* start_contention(Device& device, const ContentionOptions& options, char* error, std::size_t error_size) {
  try {
    return cuda::start_contention(static_cast<CudaDevice&>(device).bind(), options).release();
  } catch (const std::exception& cause) {
    cudaGetLastError();
    say(error, error_size, cause.what());
    return nullptr;
  }
}

constexpr CudaLibrary library{cuda_interface_version, gpus, open, make_nccl_id, open_nccl, start_contention};

}  // namespace
}  // namespace tinyllama

const tinyllama::CudaLibrary* tinyllama_cuda_library() { return &tinyllama::library; }
