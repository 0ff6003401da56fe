#include "native/distributed/parameter_store.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "native/core/error.h"
#include "native/model/initialization.h"

namespace tinyllama {

namespace {

// Ranks [k * shards, (k + 1) * shards) share copy k. Null where that is the whole world, or each rank by itself.
std::unique_ptr<Communicator> split(Communicator& world, int shards, bool by_copy) {
  if (shards == 1 || shards == world.size()) return nullptr;
  std::vector<int> colours(static_cast<std::size_t>(world.size()));
  for (int rank = 0; rank < world.size(); ++rank) colours[static_cast<std::size_t>(rank)] = by_copy ? rank / shards : rank % shards;
  return world.split(colours);
}

constexpr std::size_t no_group = std::numeric_limits<std::size_t>::max();

std::int64_t blocks_of(std::int64_t count) { return (count + ShardLayout::block - 1) / ShardLayout::block; }

}  // namespace

ParameterStore::ParameterStore(Device& device, const LlamaConfig& config, Communicator& world, const Sharding& sharding, DataType state_type)
    : device_(device),
      config_(config),
      world_(world),
      sharding_(sharding),
      layout_(parameter_layout(config)),
      copy_ranks_(split(world, ranks_per_copy(sharding, world.size()), true)),
      share_ranks_(split(world, ranks_per_copy(sharding, world.size()), false)),
      within_(copy_ranks_ ? *copy_ranks_ : world),
      shards_(layout_, ranks_per_copy(sharding, world.size()), world.rank() % ranks_per_copy(sharding, world.size())),
      plan_(plan_store(layout_, shards_, sharding, world.size(), device.compute_type(), state_type)),
      weights_(device, "weights", shards_, state_type),
      gathers_(shards_.groups().size(), -1) {
  held_.fill(no_group);
  gradient_owner_.fill(no_group);
  reducing_.fill(-1);
  if (sharding.sums_each_micro_batch()) sums_ = std::make_unique<ShardedBuffer>(device, "gradients", shards_);
  weights_.at(0);
  std::int64_t place = 0;
  for (const Parameter& parameter : layout_.parameters) {
    if (parameter.role != ParameterRole::gain) continue;
    gain_places_[parameter.offset] = place;
    place += parameter.count;
  }
  allocate_copies();
}

// Beside the masters: what passes read. A single rank whose masters are of the compute type reads them themselves.
void ParameterStore::allocate_copies() {
  const auto take = [this](std::int64_t bytes) { return bytes > 0 ? device_.allocate(static_cast<std::size_t>(bytes)) : nullptr; };
  gains_ = take(plan_.gains);
  compute_ = take(plan_.resident);
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) slots_[slot] = take(plan_.slots[slot]);
}

void ParameterStore::initialize(std::uint64_t seed) {
  for (const Parameter& parameter : layout_.parameters) {
    if (parameter.role == ParameterRole::gain) {
      weights_.write(parameter.offset, parameter.count, std::vector<float>(static_cast<std::size_t>(parameter.count), 1.0f).data());
    } else {
      weights_.fill_normal(parameter.offset, parameter.count, seed, static_cast<float>(initial_deviation(config_, parameter.role)));
    }
  }
  weights_written();
  device_.synchronize();
}

std::byte* ParameterStore::weights_of(std::size_t group) {
  if (gathers_on_demand()) return static_cast<std::byte*>(slots_[slot_in(group)]->data());
  std::byte* all = static_cast<std::byte*>(compute_ ? compute_->data() : weights_.at(0));
  return all + shards_.padded_offset(group) * compute_bytes();
}

std::byte* ParameterStore::own_place(std::size_t group) {
  const int shard = sharded() ? within_.rank() : 0;
  return weights_of(group) + shard * shards_.share(group) * compute_bytes();
}

// From the masters to this rank's place in the copy.
void ParameterStore::put_own_weights(std::size_t group) {
  const void* masters = weights_.at(shards_.local_offset(group));
  const std::int64_t share = shards_.share(group);
  std::byte* place = own_place(group);
  if (rounds()) {
    device_.round_weights(place, static_cast<const float*>(masters), share);
  } else if (widens()) {
    device_.widen(reinterpret_cast<float*>(place), static_cast<const std::uint16_t*>(masters), share);
  } else {
    device_.copy(place, masters, static_cast<std::size_t>(share * compute_bytes()));
  }
}

void ParameterStore::fetch(std::size_t group) {
  const std::size_t slot = slot_in(group);
  if (held_[slot] == group) return;
  held_[slot] = group;
  put_own_weights(group);
  gathers_[group] = within_.all_gather(weights_of(group), own_place(group), static_cast<std::size_t>(shards_.share(group) * compute_bytes()),
                                       {static_cast<int>(group)});
}

// Every copy from the masters, after they were written to from outside.
void ParameterStore::refresh() {
  copies_are_stale_ = false;
  if (compute_ && rounds()) {
    for (std::size_t group = 0; group < shards_.groups().size(); ++group) put_own_weights(group);
  }
  spread();
}

void ParameterStore::finish_update() {
  // An update leaves zeros in what it has read: without sharding, everything.
  if (sharded() && !sums_) clear_gradients();
  spread();
}

// What is rounded the update has left in place.
void ParameterStore::spread() {
  gather_gains();
  if (gathers_on_demand()) {
    held_.fill(no_group);
    return;
  }
  for (std::size_t group = 0; group < shards_.groups().size(); ++group) {
    if (compute_ && !rounds()) put_own_weights(group);
    if (!sharded()) continue;
    gathers_[group] = within_.all_gather(weights_of(group), own_place(group), static_cast<std::size_t>(shards_.share(group) * compute_bytes()),
                                         {static_cast<int>(group)});
  }
}

// Norms read fp32 gains: the rounded copies keep too little of them, and bf16 masters are widened. Each is held by one rank, or cut between two: the
// others add zeros.
void ParameterStore::gather_gains() {
  if (!gains_) return;
  auto* gains = static_cast<float*>(gains_->data());
  device_.fill_zero(gains, gains_->bytes());
  for (const ShardLayout::Piece& piece : shards_.pieces()) {
    for (const Parameter& parameter : layout_.parameters) {
      if (parameter.role != ParameterRole::gain) continue;
      const std::int64_t first = std::max(piece.flat, parameter.offset);
      const std::int64_t end = std::min(piece.flat + piece.count, parameter.offset + parameter.count);
      if (first >= end) continue;
      float* place = gains + gain_places_.at(parameter.offset) + first - parameter.offset;
      const void* masters = weights_.at(piece.local + first - piece.flat);
      if (state_type() == DataType::f32) {
        device_.copy(place, masters, static_cast<std::size_t>(end - first) * sizeof(float));
      } else {
        device_.widen(place, static_cast<const std::uint16_t*>(masters), end - first);
      }
    }
  }
  if (!sharded()) return;
  const Communicator::Ticket ticket = within_.all_reduce(gains, static_cast<std::int64_t>(gains_->bytes() / sizeof(float)), {});
  within_.wait(ticket);
}

void ParameterStore::prepare() {
  if (copies_are_stale_) refresh();
}

bool ParameterStore::communicates() const {
  if (world_.size() == 1) return false;
  const bool gathers = gathers_on_demand() ||
                       std::any_of(gathers_.begin(), gathers_.end(), [](Communicator::Ticket ticket) { return ticket >= 0; });
  return gathers || sums_ || round_.last;
}

void ParameterStore::acquire(std::size_t group, std::optional<std::size_t> next) {
  if (!sharded()) return;
  if (gathers_on_demand()) fetch(group);
  if (gathers_[group] >= 0) within_.wait(gathers_[group]);
  gathers_[group] = -1;
  if (gathers_on_demand() && next && slot_in(*next) != slot_in(group)) fetch(*next);
}

Tensor ParameterStore::weight(std::int64_t offset, std::int64_t rows, std::int64_t columns) {
  const std::size_t group = shards_.group_of(offset);
  return matrix(weights_of(group) + (offset - shards_.groups()[group].offset) * compute_bytes(), device_.compute_type(), rows, columns);
}

const float* ParameterStore::gain(std::int64_t offset) {
  if (gains_) return static_cast<float*>(gains_->data()) + gain_places_.at(offset);
  if (!sharded() && !widens()) return weights_.data() + offset;
  return weight(offset, 1, 1).f32();
}

void ParameterStore::allocate_gradients() {
  if (gradients_ || gradient_slots_[0]) return;
  const auto take = [this](std::int64_t bytes) { return bytes > 0 ? device_.allocate(static_cast<std::size_t>(bytes)) : nullptr; };
  gradients_ = take(plan_.gradients);
  for (std::size_t slot = 0; slot < gradient_slots_.size(); ++slot) gradient_slots_[slot] = take(plan_.gradient_slots[slot]);
}

// Where this rank's gradients of the group lie.
float* ParameterStore::gradients_of(std::size_t group) {
  allocate_gradients();
  if (gradients_) return static_cast<float*>(gradients_->data()) + shards_.padded_offset(group);
  const std::size_t slot = slot_in(group);
  settle(slot);
  gradient_owner_[slot] = group;
  return static_cast<float*>(gradient_slots_[slot]->data());
}

float* ParameterStore::gradient(std::int64_t offset) {
  const std::size_t group = shards_.group_of(offset);
  return gradients_of(group) + offset - shards_.groups()[group].offset;
}

// This rank's share of the group's gradients, once they are summed.
float* ParameterStore::summed_gradients(std::size_t group) {
  if (sums_) return sums_->data() + shards_.local_offset(group);
  const int shard = sharded() ? within_.rank() : 0;
  return gradients_of(group) + shard * shards_.share(group);
}

void ParameterStore::gradient_ready(std::size_t group) {
  if (sharding_.fixed_order || (sums_ && world_.size() == 1)) {
    add_in_order(group);
  } else if (sums_) {
    reducing_[slot_in(group)] = reduce(group);
  } else if (round_.last && world_.size() > 1) {
    last_reduction_ = reduce(group);
  }
}

// The group's gradients become their sum over ranks, in this rank's share of where they lie.
Communicator::Ticket ParameterStore::reduce(std::size_t group) {
  const CollectiveLabel label{static_cast<int>(group)};
  const std::int64_t share = shards_.share(group);
  float* own = gradients_of(group);
  float* part = own + (sharded() ? within_.rank() * share : 0);
  Communicator::Ticket ticket = -1;
  if (sharded()) ticket = within_.reduce_scatter(part, own, share, label);
  if (shards_.shards() == world_.size()) return ticket;
  return (share_ranks_ ? *share_ranks_ : world_).all_reduce(part, share, label);
}

// What lies in the slot is added to the sums, and the slot is free.
void ParameterStore::settle(std::size_t slot) {
  if (reducing_[slot] < 0) return;
  const std::size_t group = gradient_owner_[slot];
  wait_for_reduction(reducing_[slot]);
  reducing_[slot] = -1;
  auto* own = static_cast<float*>(gradient_slots_[slot]->data());
  const std::int64_t share = shards_.share(group);
  device_.add(summed_gradients(group), own + (sharded() ? within_.rank() * share : 0), share);
  device_.fill_zero(own, static_cast<std::size_t>(share * shards_.shards()) * sizeof(float));
}

float* ParameterStore::exchange() {
  if (!exchange_) exchange_ = device_.allocate(static_cast<std::size_t>(plan_.exchange));
  return static_cast<float*>(exchange_->data());
}

// ((m0 + m1) + m2) + …, the micro-batches in their global order: round by round, and within a round by rank.
void ParameterStore::add_in_order(std::size_t group) {
  float* own = gradients_of(group);
  const std::int64_t share = shards_.share(group), whole = share * shards_.shards();
  if (world_.size() == 1) {
    device_.add(summed_gradients(group), own, share);
  } else if (shards_.shards() == world_.size()) {
    auto* received = exchange();
    world_.wait(world_.all_to_all(received, own, static_cast<std::size_t>(share) * sizeof(float), {static_cast<int>(group)}));
    const int contributors = round_.contributors > 0 ? round_.contributors : world_.size();
    for (int rank = 0; rank < contributors; ++rank) device_.add(summed_gradients(group), received + rank * share, share);
  } else {
    add_gathered(group);
  }
  device_.fill_zero(own, static_cast<std::size_t>(whole) * sizeof(float));
}

// Where several ranks hold the same share: every rank sees all gradients, a part at a time, and takes what it holds.
void ParameterStore::add_gathered(std::size_t group) {
  const float* own = gradients_of(group);
  const std::int64_t share = shards_.share(group), whole = share * shards_.shards();
  const std::int64_t part = exchange_part(shards_, group, world_.size());
  auto* received = exchange();
  const int contributors = round_.contributors > 0 ? round_.contributors : world_.size();
  const std::int64_t begin = sharded() ? within_.rank() * share : 0;
  for (std::int64_t first = 0; first < whole; first += part) {
    const std::int64_t length = std::min(part, whole - first);
    world_.wait(world_.all_gather(received, own + first, static_cast<std::size_t>(length) * sizeof(float), {static_cast<int>(group)}));
    const std::int64_t from = std::max(first, begin), end = std::min(first + length, begin + share);
    for (int rank = 0; rank < contributors && from < end; ++rank) {
      device_.add(summed_gradients(group) + from - begin, received + rank * length + from - first, end - from);
    }
  }
}

// Collectives of one rank run one after the other: the last is over when all are. It may be of either communicator.
void ParameterStore::wait_for_reduction(Communicator::Ticket ticket) {
  Communicator& copies = share_ranks_ ? *share_ranks_ : world_;
  (shards_.shards() == world_.size() ? within_ : copies).wait(ticket);
}

void ParameterStore::wait_for_reductions() {
  for (std::size_t slot = 0; slot < reducing_.size(); ++slot) settle(slot);
  if (last_reduction_ < 0) return;
  wait_for_reduction(last_reduction_);
  last_reduction_ = -1;
}

// Squares are summed per block of a group in double, and the blocks' sums in eight lanes by their place in the group: the same total on any number of
// ranks. The GPU waits meanwhile, so the memory is kept from step to step, and no addition waits for the one before.
double ParameterStore::gradient_norm() {
  wait_for_reductions();
  const auto bytes = static_cast<std::size_t>(plan_.norm_sums);
  if (!norm_sums_) norm_sums_ = device_.allocate(bytes);
  auto* sums = static_cast<double*>(norm_sums_->data());
  std::int64_t at = 0;
  for (std::size_t group = 0; group < shards_.groups().size(); ++group) {
    device_.squared_norm(sums + at, summed_gradients(group), shards_.share(group));
    at += blocks_of(shards_.share(group));
  }
  own_squares_.resize(bytes / sizeof(double));
  device_.copy_out(own_squares_.data(), sums, bytes);
  device_.synchronize();
  if (!sharded()) return std::sqrt(sum_of_blocks(own_squares_));
  all_squares_.resize(own_squares_.size() * static_cast<std::size_t>(shards_.shards()));
  within_.exchange(all_squares_.data(), own_squares_.data(), bytes);
  return std::sqrt(sum_of_blocks(all_squares_));
}

// Of every rank's blocks, rank by rank.
double ParameterStore::sum_of_blocks(const std::vector<double>& squares) const {
  const std::size_t ranks = static_cast<std::size_t>(shards_.shards()), of_rank = squares.size() / ranks;
  double total = 0;
  std::size_t first = 0;
  for (std::size_t group = 0; group < shards_.groups().size(); ++group) {
    const auto count = static_cast<std::size_t>(blocks_of(shards_.share(group)));
    std::array<double, 8> lanes{};
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      const double* blocks = squares.data() + rank * of_rank + first;
      for (std::size_t block = 0; block < count; ++block) lanes[(rank * count + block) % lanes.size()] += blocks[block];
    }
    total += ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    first += count;
  }
  return total;
}

std::vector<ParameterStore::Update> ParameterStore::updates() {
  wait_for_reductions();
  if (!sharded()) {
    float* gradients = sums_ ? sums_->data() : gradients_of(0);
    return {{0, 0, layout_.count, weights_.at(0), rounds() ? compute_->data() : nullptr, gradients}};
  }
  std::vector<Update> updates;
  for (const ShardLayout::Piece& piece : shards_.pieces()) {
    void* rounded = rounds() && compute_ ? own_place(piece.group) : nullptr;
    updates.push_back({piece.flat, piece.local, piece.count, weights_.at(piece.local), rounded, summed_gradients(piece.group)});
  }
  return updates;
}

void ParameterStore::clear_gradients() {
  wait_for_reductions();
  if (gradients_) device_.fill_zero(gradients_->data(), gradients_->bytes());
  for (const auto& slot : gradient_slots_)
    if (slot) device_.fill_zero(slot->data(), slot->bytes());
  if (sums_) sums_->fill_zero();
}

void ParameterStore::read_gradients(std::int64_t offset, std::int64_t length, float* out) {
  require(!sharded(), "gradients are read where they are whole: on a world of one rank");
  require(offset >= 0 && length >= 0 && offset <= layout_.count && length <= layout_.count - offset, "gradients: the range lies outside");
  if (!gradients_ && !gradient_slots_[0]) {
    std::fill_n(out, length, 0.0f);
    return;
  }
  const float* gradients = sums_ ? sums_->data() : gradients_of(0);
  device_.copy_out(out, gradients + offset, static_cast<std::size_t>(length) * sizeof(float));
  device_.synchronize();
}

void ParameterStore::write_gradients(std::int64_t offset, std::int64_t length, const float* values) {
  require(!sharded(), "gradients are written where they are whole: on a world of one rank");
  require(offset >= 0 && length >= 0 && offset <= layout_.count && length <= layout_.count - offset, "gradients: the range lies outside");
  float* gradients = sums_ ? sums_->data() : gradients_of(0);
  device_.copy_in(gradients + offset, values, static_cast<std::size_t>(length) * sizeof(float));
  device_.synchronize();
}

}  // namespace tinyllama
