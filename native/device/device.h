// What a backend offers to native/model: memory, and the operations of a Llama's training step. It knows no model.
//
// Notation: B sequences of T tokens, N = B*T rows, D width, H query heads, G key/value heads (H % G == 0), S head size, F feed-forward
// width, V vocabulary. All matrices are row-major; weights are [out, in] as in Hugging Face's layout.
// "+=" in a comment: the result is added to what the output held. Every operation is deterministic, and its result does not depend on the
// number of threads: work is split by outputs, and reductions follow a fixed order.
// Operations may run asynchronously (CUDA streams); synchronize() waits for all that was issued.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "native/core/tensor.h"
#include "native/device/memory_snapshot.h"

namespace tinyllama {

class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual void* data() const = 0;
  virtual std::size_t bytes() const = 0;
};

enum class Transpose : std::uint8_t { no, yes };

struct AttentionShape {
  std::int64_t batch, length, heads, kv_heads, head_size;
};

struct AdamWArguments {
  float learning_rate, beta1, beta2, epsilon, weight_decay;
  std::int64_t step;      // 1-based, for bias correction
  float gradient_scale;   // gradients are multiplied by it first (global norm clipping)
};

class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;
  // Of activations, and of the weights that products read. Parameters, gradients and moments are f32 all the same.
  virtual DataType compute_type() const = 0;

  // Whether its memory is the host's own, which any code may read and write.
  virtual bool in_host_memory() const = 0;

  virtual std::unique_ptr<Buffer> allocate(std::size_t bytes) = 0;  // zero-filled, 64-byte aligned; throws Error when out of memory
  // Bytes in use: on a GPU all that its driver counts, of other processes too; on the CPU those that were allocated here.
  virtual std::size_t memory_in_use() = 0;
  // Of these, what it holds for itself: scratch memory of its operations and workspaces of its libraries.
  virtual std::size_t overhead() const = 0;
  virtual void copy_in(void* device, const void* host, std::size_t bytes) = 0;
  virtual void copy_out(void* host, const void* device, std::size_t bytes) = 0;
  // Within the device. The two do not overlap; nothing is done where they are the same.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void fill_zero(void* device, std::size_t bytes) = 0;
  // out[i] = deviation * the standard normal value of (seed, first + i): native/core/normal.h.
  virtual void fill_normal(float* out, std::int64_t count, std::uint64_t seed, std::int64_t first, float deviation) = 0;
  virtual void synchronize() = 0;
  // What the ranges hold once all that was issued is done: a copy in the device's memory where there is room for it and copying is fastest, else in the
  // host's, else none. What is issued later does not change it, unless it is no copy.
  virtual std::unique_ptr<MemorySnapshot> snapshot(const std::vector<MemoryRange>& ranges) = 0;
  // Memory of the host that copies from and to the device are fast with. Any thread may call it.
  virtual std::unique_ptr<Buffer> allocate_staging(std::size_t bytes) = 0;
  // Does `work`, which issues operations of this device. A device may record them under `key` and repeat the record at later calls with that key:
  // the same operations on the same memory.
  virtual void repeat(const std::string& key, const std::function<void()>& work) = 0;

  // out(M,N) = op(a) · op(b) + (accumulate ? out : 0). op(a) is (M,K), op(b) is (K,N); `yes` means the operand is stored transposed.
  // Forward of y = x·Wᵀ: matmul(y, x, no, W, yes); dx = dy·W: (dx, dy, no, W, no); dW += dyᵀ·x: (dW, dy, yes, x, no, accumulate).
  virtual void matmul(Tensor out, Tensor a, Transpose transpose_a, Tensor b, Transpose transpose_b, bool accumulate) = 0;

  // out(N,D): row n is table(V,D)'s row ids[n].
  virtual void embedding_forward(Tensor out, Tensor table, const std::int32_t* ids) = 0;
  // dtable(V,D) += dout(N,D)'s rows, summed per id in ascending row order; on a GPU, ids of very many rows by a tree that the ids alone decide.
  virtual void embedding_backward(Tensor dtable, Tensor dout, const std::int32_t* ids) = 0;

  // sum(N,D) = x + delta, when delta is given (sum may be x itself); then out = gain * sum / sqrt(mean(sum²) + eps), rstd(N).
  // Without delta (delta.data == nullptr) sum is not written and x itself is normalized.
  virtual void rms_norm_forward(Tensor out, float* rstd, Tensor sum, Tensor x, Tensor delta, const float* gain, float eps) = 0;
  // out = gain * x * rstd: what rms_norm_forward gave.
  virtual void rms_norm_again(Tensor out, Tensor x, const float* gain, const float* rstd) = 0;
  // dx(N,D) += gradient through the norm of x; dgain(D) += its gradient. x is what was normalized. Writes the norm's output to `normed` where
  // that is given.
  virtual void rms_norm_backward(Tensor dx, float* dgain, Tensor normed, Tensor dout, Tensor x, const float* gain, const float* rstd) = 0;

  // Rotates q and k inside the packed qkv rows (N, (H + 2G)·S) in place, half-split pairing (element i with i + S/2).
  // cosine, sine: (T, S/2); the position of row n is n % T. inverse: the conjugate rotation, for the backward pass.
  virtual void rotary(Tensor qkv, const float* cosine, const float* sine, const AttentionShape& shape, bool inverse) = 0;

  // Causal grouped-query attention on packed rows [q heads | k heads | v heads]; out (N, H·S), lse (B,H,T) = log of the softmax sums
  // (of scores scaled by 1/sqrt(S)). Memory beyond the outputs: a tile per thread, never T×T for the batch.
  // first_keys (N), on the device: position t of a sequence attends to keys first_keys[t] to t, positions in the sequence, 0 <= first_keys[t] <= t,
  // so that packed documents do not see each other. Null: to all keys up to t.
  virtual void attention_forward(Tensor out, float* lse, Tensor qkv, const AttentionShape& shape, const std::int32_t* first_keys) = 0;
  // dqkv (overwritten) from dout, with the forward's qkv, out, lse and first_keys.
  virtual void attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, const float* lse, const AttentionShape& shape,
                                  const std::int32_t* first_keys) = 0;

  // act(N,F) = silu(gate) * up, gate_up(N,2F) holding [gate | up].
  virtual void swiglu_forward(Tensor act, Tensor gate_up) = 0;
  // dgate_up(N,2F) (overwritten; may be gate_up itself) from dact. Writes the forward's output to `act`, which may be dact itself, where it is
  // given.
  virtual void swiglu_backward(Tensor dgate_up, Tensor act, Tensor dact, Tensor gate_up) = 0;

  // Fused linear + cross entropy in chunks of rows; never holds (N,V) logits.
  // losses(N) = -log softmax(hidden · weightᵀ)[target] (0 where target < 0); dhidden(N,D) (overwritten) and dweight(V,D) += receive the gradient of
  // scale * sum(losses); the scale is one value on the device.
  virtual void linear_cross_entropy(float* losses, Tensor dhidden, Tensor dweight, Tensor hidden, Tensor weight,
                                    const std::int32_t* targets, const float* scale) = 0;
  // log_probabilities(N) of the targets (0 where target < 0); greedy(N) = 1 where the target is the first arg max.
  virtual void linear_log_probability(float* log_probabilities, std::uint8_t* greedy, Tensor hidden, Tensor weight,
                                      const std::int32_t* targets) = 0;

  // a += b, over count elements.
  virtual void add(float* a, const float* b, std::int64_t count) = 0;
  // sums[b] = the sum of squares of block b of 4096 values (the last may be shorter), in double.
  virtual void squared_norm(double* sums, const float* values, std::int64_t count) = 0;
  // rounded = weights as bf16, to the nearest.
  virtual void round_weights(void* rounded, const float* weights, std::int64_t count) = 0;
  // AdamW (Loshchilov & Hutter 2019, as torch.optim.AdamW): decoupled decay first, then the bias-corrected update. Leaves zeros in `gradients`,
  // and the new weights in `rounded` as round_weights does, where that is not null.
  virtual void adamw(float* weights, void* rounded, float* first_moment, float* second_moment, float* gradients, std::int64_t count,
                     const AdamWArguments& arguments) = 0;
  // out = the bf16 values, exactly.
  virtual void widen(float* out, const std::uint16_t* values, std::int64_t count) = 0;
  // adamw where weights and moments are bf16: computed in fp32, then each of the three rounded stochastically by random bits of (seed, step, `first` +
  // its index, which of the three): native/device/stochastic_adamw.h. `first` is the index of element 0 in the whole model, so that any split into
  // calls and devices gives the same bits, and so do all devices. Leaves zeros in `gradients`.
  virtual void adamw_stochastic(std::uint16_t* weights, std::uint16_t* first_moment, std::uint16_t* second_moment, float* gradients,
                                std::int64_t count, std::int64_t first, std::uint64_t seed, const AdamWArguments& arguments) = 0;
};

}  // namespace tinyllama
