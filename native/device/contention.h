// Stands for collectives beside compute where there are none: takes multiprocessors and memory bandwidth away, as NCCL's kernels would, so that a step's
// slowdown beside communication can be measured on one GPU.
#pragma once

namespace tinyllama {

struct ContentionOptions {
  int multiprocessors = 0;            // taken whole: nothing else runs on them
  double gigabytes_per_second = 0;    // read and written, together, by all of them
  double most_seconds = 60;           // it ends by itself then, so that no one who waits for the whole device waits for ever
};

class Contention {
 public:
  virtual ~Contention() = default;  // ends it
  // Ends it; the gigabytes per second that it has moved.
  virtual double stop() = 0;
};

}  // namespace tinyllama
