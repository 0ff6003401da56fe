// A model's parameters and gradients on one of several ranks (native/distributed/sharding.h), and what the ranks say to each other about them.
//
// A step: begin_micro_batch() and the model's pass, as often as there are micro-batches; then gradient_norm(), updates() and spread(), or
// clear_gradients() alone. All ranks do the same in the same order.
//
// What waits for what (see communicator.h for the two kinds of edges):
//   gather of a group's weights     begins after the update of this rank's share, and after the last pass over what its memory held before
//   a pass over a group             begins after its gather
//   reduction of a group's gradients begins after the pass that adds to them last
//   norm, update, clearing          begin after every group's reduction
// Gradients stay on their rank until the step's last micro-batch: accumulation costs no traffic. With `fixed_order` or `share_gradients` they are summed
// over ranks after every micro-batch, from memory for two layers: the sum of layer l runs while layer l - 1 is computed.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "native/device/device.h"
#include "native/distributed/communicator.h"
#include "native/distributed/sharding.h"
#include "native/distributed/store_plan.h"
#include "native/model/parameters.h"
#include "native/model/sharded_buffer.h"

namespace tinyllama {

// One round of the step's micro-batches: every rank makes one, or none.
struct MicroBatchRound {
  bool last = true;      // of the step
  int contributors = 0;  // ranks, from 0 on, whose micro-batch counts; what the others make has no scored target. 0: all
};

class ParameterStore final : public Parameters {
 public:
  // The weights start as zeros. `state_type` is that of the master weights, and so of the moments: with bf16 there is no fp32 copy of either.
  // Device and communicator must outlive the store.
  ParameterStore(Device& device, const LlamaConfig& config, Communicator& world, const Sharding& sharding = {},
                 DataType state_type = DataType::f32);

  const ParameterLayout& layout() const { return layout_; }
  const ShardLayout& shards() const { return shards_; }
  // Fills the weights as native/model/initialization.h says; element i depends on (seed, i) alone.
  void initialize(std::uint64_t seed);
  // Master weights. Whoever writes to them says weights_written() afterwards.
  ShardedBuffer& weights() { return weights_; }
  DataType state_type() const { return weights_.type(); }
  void weights_written() { copies_are_stale_ = true; }

  void prepare() override;
  bool communicates() const override;
  void acquire(std::size_t group, std::optional<std::size_t> next) override;
  Tensor weight(std::int64_t offset, std::int64_t rows, std::int64_t columns) override;
  const float* gain(std::int64_t offset) override;
  float* gradient(std::int64_t offset) override;
  void gradient_ready(std::size_t group) override;

  void begin_micro_batch(const MicroBatchRound& round) { round_ = round; }
  // Of the sum over all micro-batches and ranks. Waits for the result.
  double gradient_norm();
  // What this rank updates: `count` elements from flat position `flat` on, at `local` of every ShardedBuffer. `weights` are of state_type();
  // `rounded` is null where they are not rounded, or are rounded when they are gathered.
  struct Update {
    std::int64_t flat, local, count;
    void* weights;
    void* rounded;
    float* gradients;
  };
  std::vector<Update> updates();
  // Brings the updated weights to the ranks that compute with them, and clears what updating leaves of the gradients.
  void finish_update();
  void clear_gradients();
  // Summed gradients, where this rank holds them.
  void read_gradients(std::int64_t offset, std::int64_t length, float* out);
  void write_gradients(std::int64_t offset, std::int64_t length, const float* values);

 private:
  bool sharded() const { return shards_.shards() > 1; }
  bool gathers_on_demand() const { return slots_[0] != nullptr; }
  // Whether what passes read is rounded from the masters, or widened; or else of the same type.
  bool rounds() const { return state_type() == DataType::f32 && device_.compute_type() != DataType::f32; }
  bool widens() const { return state_type() != DataType::f32 && device_.compute_type() == DataType::f32; }
  std::int64_t compute_bytes() const { return bytes_of(device_.compute_type()); }
  std::size_t slot_in(std::size_t group) const { return slot_of(group, shards_.groups().size(), layout_.head == layout_.embedding); }
  std::byte* weights_of(std::size_t group);
  std::byte* own_place(std::size_t group);
  void put_own_weights(std::size_t group);
  void fetch(std::size_t group);
  void refresh();
  void spread();
  void gather_gains();
  void allocate_gradients();
  float* gradients_of(std::size_t group);
  void settle(std::size_t slot);
  float* exchange();
  float* summed_gradients(std::size_t group);
  Communicator::Ticket reduce(std::size_t group);
  void wait_for_reduction(Communicator::Ticket ticket);
  void add_in_order(std::size_t group);
  void add_gathered(std::size_t group);
  void wait_for_reductions();
  double sum_of_blocks(const std::vector<double>& squares) const;
  void allocate_copies();

  Device& device_;
  LlamaConfig config_;
  Communicator& world_;
  Sharding sharding_;
  ParameterLayout layout_;
  // Those who share one copy; those who hold the same share of other copies.
  std::unique_ptr<Communicator> copy_ranks_, share_ranks_;
  Communicator& within_;
  ShardLayout shards_;
  StorePlan plan_;
  ShardedBuffer weights_;
  std::unique_ptr<ShardedBuffer> sums_;        // gradients summed so far, where every micro-batch's are
  std::unique_ptr<Buffer> compute_;            // resident: rounded, widened, or a copy of all shares; padded order
  std::array<std::unique_ptr<Buffer>, 4> slots_;  // fsdp: see slot_of
  std::array<std::size_t, 4> held_;               // the group in each slot; nothing: no group's number
  std::unique_ptr<Buffer> gains_;              // fp32, where neither masters nor copies have them so
  std::map<std::int64_t, std::int64_t> gain_places_;
  std::vector<Communicator::Ticket> gathers_;  // of each group; -1: nothing to wait for
  std::unique_ptr<Buffer> gradients_;          // this rank's, padded order
  std::array<std::unique_ptr<Buffer>, 4> gradient_slots_;  // or of some groups, as slot_of tells
  std::array<std::size_t, 4> gradient_owner_;  // the group in each; nothing: no group's number
  std::array<Communicator::Ticket, 4> reducing_;  // the reduction of what lies in each; -1: none is under way
  std::unique_ptr<Buffer> exchange_;           // fixed_order: a group's gradients from every rank
  std::unique_ptr<Buffer> norm_sums_;
  std::vector<double> own_squares_, all_squares_;
  Communicator::Ticket last_reduction_ = -1;
  MicroBatchRound round_;
  bool copies_are_stale_ = true;
};

}  // namespace tinyllama
