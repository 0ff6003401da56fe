// Records of repeated work: how often the work itself runs, that a record made before the scratch memory moved is not launched again, and that a
// failure inside a recording leaves the recorder usable.
#include <functional>
#include <vector>

#include "native/device/cuda/recorder.h"
#include "test/native/cuda/gpu_check.h"

namespace tinyllama {
namespace {

using check::expect;

constexpr std::size_t small = 4096;

// Writes `value` into scratch memory of `bytes` and brings its first `small` bytes to `out`.
struct Work {
  CudaContext& context;
  char* out;
  std::size_t bytes;
  int value;
  int calls = 0;
  void* scratch = nullptr;

  void operator()() {
    ++calls;
    scratch = context.scratch(bytes);
    CHECK_CUDA(cudaMemsetAsync(scratch, value, small, context.stream()));
    CHECK_CUDA(cudaMemcpyAsync(out, scratch, small, cudaMemcpyDeviceToDevice, context.stream()));
  }
};

class Output {
 public:
  Output() { CHECK_CUDA(cudaMalloc(&memory_, small)); }
  ~Output() { cudaFree(memory_); }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  char* data() const { return static_cast<char*>(memory_); }
  void fill(CudaContext& context, int value) const { CHECK_CUDA(cudaMemsetAsync(memory_, value, small, context.stream())); }
  bool holds(CudaContext& context, int value) const {
    std::vector<char> bytes(small);
    CHECK_CUDA(cudaMemcpyAsync(bytes.data(), memory_, small, cudaMemcpyDeviceToHost, context.stream()));
    CHECK_CUDA(cudaStreamSynchronize(context.stream()));
    return bytes == std::vector<char>(small, static_cast<char>(value));
  }

 private:
  void* memory_ = nullptr;
};

void repeat(cuda::Recorder& recorder, const std::string& key, Work& work, const Output& out) {
  out.fill(work.context, 0x55);
  recorder.repeat(key, [&] { work(); });
  expect(out.holds(work.context, work.value), key + ": wrong output after call " + std::to_string(work.calls) + " of its work");
}

void scratch_that_moves(CudaContext& context) {
  cuda::Recorder recorder(context);
  Output out;
  Work first{context, out.data(), small, 1}, second{context, out.data(), small, 2};
  for (int i = 0; i < 4; ++i) {
    repeat(recorder, "first", first, out);
    repeat(recorder, "second", second, out);
  }
  expect(first.calls == 2 && second.calls == 2, "work runs as it is, then to be recorded, then no more");

  void* const old = first.scratch;
  const std::uint64_t generation = context.scratch_generation();
  Work large{context, out.data(), std::size_t{96} << 20, 3};
  repeat(recorder, "large", large, out);
  expect(context.scratch_generation() == generation + 1, "scratch memory that moves gets a new number");
  // The allocator likes to give the freed address away again: who gets it must not be written into by an old record.
  std::vector<Output> others(64);
  for (const Output& other : others) other.fill(context, 0x7f);
  for (int i = 0; i < 3; ++i) {
    repeat(recorder, "first", first, out);
    repeat(recorder, "second", second, out);
    repeat(recorder, "large", large, out);
  }
  expect(first.calls == 3 && second.calls == 3, "records of the old scratch memory are made once more");
  expect(large.calls == 2, "a record of the new scratch memory stays");
  expect(first.scratch == context.scratch(1) && second.scratch == first.scratch, "the new records use the new scratch memory");
  for (const Output& other : others) expect(other.holds(context, 0x7f), "memory of others is as it was");
  std::printf("scratch memory moved from %p to %p\n", old, first.scratch);
}

void failures_in_a_recording(CudaContext& context) {
  cuda::Recorder recorder(context);
  Output out;
  Work work{context, out.data(), small, 4};
  int calls = 0;
  auto fails_at_second = [&] {
    work();
    if (++calls == 2) throw Error("on purpose");
  };
  recorder.repeat("fails", fails_at_second);
  bool thrown = false;
  try {
    recorder.repeat("fails", fails_at_second);
  } catch (const Error&) {
    thrown = true;
  }
  expect(thrown, "an error inside a recording is passed on");
  repeat(recorder, "fails", work, out);
  repeat(recorder, "fails", work, out);

  // Work whose need for scratch memory grows between its first run and its recording.
  Work grows{context, out.data(), small, 5};
  repeat(recorder, "grows", grows, out);
  grows.bytes = context.scratch_bytes() + 1;
  const std::uint64_t generation = context.scratch_generation();
  thrown = false;
  try {
    recorder.repeat("grows", [&] { grows(); });
  } catch (const Error&) {
    thrown = true;
  }
  expect(thrown && context.scratch_generation() == generation, "scratch memory does not grow inside a recording");
  grows.bytes = small;
  repeat(recorder, "grows", grows, out);
}

void more_keys_than_records(CudaContext& context) {
  cuda::Recorder recorder(context);
  Output out;
  std::vector<Work> works;
  for (int i = 0; i < 20; ++i) works.push_back({context, out.data(), small, 10 + i});
  for (int i = 0; i < 20; ++i)
    for (int k = 0; k < 3; ++k) repeat(recorder, "key " + std::to_string(i), works[static_cast<std::size_t>(i)], out);
  for (const Work& work : works) expect(work.calls == 2, "each key is recorded once");
  repeat(recorder, "key 0", works[0], out);
  expect(works[0].calls == 3, "the record used longest ago has made room");
}

void run() {
  CudaContext context(0);
  scratch_that_moves(context);
  failures_in_a_recording(context);
  more_keys_than_records(context);
  CHECK_CUDA(cudaDeviceSynchronize());
}

}  // namespace
}  // namespace tinyllama

int main() {
  try {
    tinyllama::run();
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
  return tinyllama::check::report("recorder");
}
