#include "native/device/cuda/recorder.h"

#include <algorithm>
#include <utility>

namespace tinyllama::cuda {

namespace {
// Each graph of a large model holds some tens of megabytes; a run that goes on with more shapes than this does not repeat them often.
constexpr std::size_t most_records = 8;
}  // namespace

Recorder::~Recorder() {
  for (auto& [key, record] : records_)
    if (record.graph) cudaGraphExecDestroy(record.graph);
}

void Recorder::repeat(const std::string& key, const std::function<void()>& work) {
  const auto known = records_.find(key);
  if (known == records_.end()) {
    work();
    make_room();
    records_[key].last_use = ++clock_;
    return;
  }
  Record& record = known->second;
  record.last_use = ++clock_;
  drop_outdated();
  if (!record.graph) {
    record.graph = this->record(work);
    record.scratch_generation = context_.scratch_generation();
  }
  CHECK_CUDA(cudaGraphLaunch(record.graph, context_.stream()));
}

cudaGraphExec_t Recorder::record(const std::function<void()>& work) {
  CHECK_CUDA(cudaStreamBeginCapture(context_.stream(), cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(context_.stream(), &graph);
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  CHECK_CUDA(cudaStreamEndCapture(context_.stream(), &graph));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  CHECK_CUDA(status);
  return executable;
}

void Recorder::make_room() {
  if (records_.size() < most_records) return;
  const auto oldest = std::min_element(records_.begin(), records_.end(),
                                       [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; });
  drop(oldest->second);
  records_.erase(oldest);
}

void Recorder::drop_outdated() {
  for (auto& [key, record] : records_)
    if (record.scratch_generation != context_.scratch_generation()) drop(record);
}

// The record stays known: its work has run, so it can be recorded at once.
void Recorder::drop(Record& record) {
  if (!record.graph) return;
  CHECK_CUDA(cudaStreamSynchronize(context_.stream()));
  CHECK_CUDA(cudaGraphExecDestroy(std::exchange(record.graph, nullptr)));
}

}  // namespace tinyllama::cuda
