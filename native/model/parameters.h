// Where a model finds its weights and leaves its gradients. Positions are of the flat order of ParameterLayout; groups are those of
// parameter_groups.h. Whether the parameters lie on this rank whole, or are gathered when they are needed, the model does not know.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>

#include "native/core/tensor.h"

namespace tinyllama {

class Parameters {
 public:
  virtual ~Parameters() = default;

  // Before each pass, outside of what is recorded: copies of weights that were written to from outside are made anew.
  virtual void prepare() = 0;
  // Whether the coming pass talks to other ranks on the way: then what it issues differs from time to time, and cannot be recorded.
  virtual bool communicates() const = 0;

  // What is issued from now on may read the group's weights, and no more those of an earlier group than the one before. `next` is what will be
  // acquired next: it is fetched meanwhile.
  virtual void acquire(std::size_t group, std::optional<std::size_t> next) = 0;
  // Elements [offset, offset + rows * columns) in the compute type.
  virtual Tensor weight(std::int64_t offset, std::int64_t rows, std::int64_t columns) = 0;
  // A norm's gain, fp32.
  virtual const float* gain(std::int64_t offset) = 0;

  // fp32, to be added to. A group's gradients lie end to end.
  virtual float* gradient(std::int64_t offset) = 0;
  // The pass adds nothing more to the group's gradients.
  virtual void gradient_ready(std::size_t group) = 0;
};

}  // namespace tinyllama
