// A GPU that fails in the middle of a step, for real: a kernel of the engine's own is given memory that is none. The step's error names CUDA, the call and
// the cause (src/engine/TrainingModel.ts makes a lost worker of it: training goes on from the last checkpoint); what was begun can be taken down.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "native/core/error.h"
#include "native/device/cuda/library.h"
#include "native/distributed/single_communicator.h"
#include "native/training/training_engine.h"
#include "test/native/cuda/gpu_check.h"

namespace tinyllama {
namespace {

using check::expect;

LlamaConfig config_of() {
  LlamaConfig config;
  config.vocab_size = 512, config.hidden_size = 256, config.intermediate_size = 512, config.num_hidden_layers = 2;
  config.num_attention_heads = 4, config.num_key_value_heads = 2, config.head_dim = 64;
  return config;
}

std::string failure_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing failed";
}

void run() {
  char error[512] = "";
  std::unique_ptr<Device> device(tinyllama_cuda_library()->open({}, error, sizeof error));
  if (!device) throw Error(error);
  std::unique_ptr<Communicator> world = make_single_communicator(*device);
  TrainingEngine engine(std::move(device), std::move(world), config_of(), {});
  engine.store.initialize(1);
  const std::vector<std::int32_t> ids(2 * 64, 7);
  const TokenBatch batch{ids, ids, 2, 64};
  for (int i = 0; i < 3; ++i) expect(engine.llama.accumulate(batch, 1.f).scored == 128, "a step before");
  engine.device->add(reinterpret_cast<float*>(0x1000), reinterpret_cast<float*>(0x2000), 4);
  for (const char* when : {"the step that fails", "every call after it"}) {
    const std::string what = failure_of([&] { engine.llama.accumulate(batch, 1.f); });
    expect(what.rfind("CUDA: ", 0) == 0 && what.find("cudaErrorIllegalAddress") != std::string::npos, std::string(when) + ": " + what);
  }
  const std::string update = failure_of([&] { engine.optimizer.step({.step = 1, .learning_rate = 1e-3}); });
  expect(update.rfind("CUDA: ", 0) == 0, "the update: " + update);
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
  return tinyllama::check::report("a failing GPU");
}
