// Work that is repeated, recorded as CUDA graphs: one launch instead of some hundred, and no gaps between small kernels.
#pragma once
#include <cuda_runtime.h>

#include <functional>
#include <map>
#include <string>

#include "native/device/cuda/cuda_context.h"

namespace tinyllama::cuda {

class Recorder {
 public:
  explicit Recorder(CudaContext& context) : context_(context) {}
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // The first call with a key does the work as it is, so that plans are made and scratch memory gets its size; the second records it; all later
  // ones launch the record. Growth of the context's scratch memory moves it, so the records made before are made anew when they are next
  // asked for. Work that grows it while it is recorded is refused with an Error.
  void repeat(const std::string& key, const std::function<void()>& work);

 private:
  struct Record {
    cudaGraphExec_t graph = nullptr;
    long last_use = 0;
    std::uint64_t scratch_generation = 0;  // when the graph was recorded
  };
  cudaGraphExec_t record(const std::function<void()>& work);
  void make_room();
  void drop_outdated();
  void drop(Record& record);

  CudaContext& context_;
  std::map<std::string, Record> records_;
  long clock_ = 0;
};

}  // namespace tinyllama::cuda
