#include "native/training/saved_state.h"

#include <algorithm>

#include "native/core/error.h"

namespace tinyllama {
namespace {

struct Part {
  StateKind kind;
  ShardedBuffer& buffer;
};

std::vector<Part> parts_of(TrainingEngine& engine) {
  return {{StateKind::weights, engine.store.weights()},
          {StateKind::first_moment, engine.optimizer.first_moment()},
          {StateKind::second_moment, engine.optimizer.second_moment()}};
}

// Of the pieces that this rank holds, the elements [count * of / parts, count * (of + 1) / parts). A buffer that nothing was written to is not allocated
// for that, but where it is asked for.
std::vector<HeldRange> held_ranges(TrainingEngine& engine, std::int64_t of, std::int64_t parts, bool allocate) {
  std::vector<HeldRange> held;
  for (const auto& [kind, buffer] : parts_of(engine)) {
    for (const ShardLayout::Piece& piece : engine.store.shards().pieces()) {
      const std::int64_t from = piece.count * of / parts, count = piece.count * (of + 1) / parts - from;
      if (count == 0) continue;
      void* data = allocate || buffer.allocated() ? buffer.at(piece.local + from) : nullptr;
      held.push_back({{kind, piece.flat + from, count}, buffer.type(), data});
    }
  }
  return held;
}

}  // namespace

SavedState take_snapshot(TrainingEngine& engine) {
  // Ranks [k * shards, (k + 1) * shards) hold copy k.
  const int shards = engine.store.shards().shards(), copies = engine.world->size() / shards, copy = engine.world->rank() / shards;
  SavedState saved{engine.device, held_ranges(engine, copy, copies, false), nullptr};
  std::vector<MemoryRange> memory;
  for (const HeldRange& range : saved.held) memory.push_back({range.data, static_cast<std::size_t>(range.bytes())});
  saved.memory = engine.device->snapshot(memory);
  return saved;
}

void restore_state(TrainingEngine& engine, const std::vector<StoredFile>& files, const std::vector<StoredRange>& ranges, int threads) {
  const std::vector<HeldRange> held = held_ranges(engine, 0, 1, true);
  std::vector<WantedRange> wanted;
  for (const HeldRange& range : held) wanted.push_back({range.elements, range.type});
  const auto take_in = [&](const ElementRange& elements, const void* values) {
    const auto home = std::find_if(held.begin(), held.end(), [&](const HeldRange& range) {
      const std::int64_t at = elements.offset - range.elements.offset;
      return range.elements.kind == elements.kind && at >= 0 && at < range.elements.count;
    });
    const std::int64_t width = bytes_of(home->type);
    engine.device->copy_in(static_cast<std::byte*>(home->data) + (elements.offset - home->elements.offset) * width, values,
                           static_cast<std::size_t>(elements.count * width));
    engine.device->synchronize();
  };
  engine.store.weights_written();
  read_state(*engine.device, files, ranges, wanted, threads, take_in);
}

}  // namespace tinyllama
