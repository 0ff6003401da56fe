#include "native/checkpoint/intersection.h"

#include <algorithm>
#include <string>

#include "native/core/error.h"

namespace tinyllama {
namespace {

std::string name_of(StateKind kind) {
  return kind == StateKind::weights ? "weights" : kind == StateKind::first_moment ? "first moments" : "second moments";
}

std::string name_of(DataType type) { return type == DataType::f32 ? "F32" : "BF16"; }

bool by_place(const StoredRange& a, const StoredRange& b) {
  return a.elements.kind != b.elements.kind ? a.elements.kind < b.elements.kind : a.elements.offset < b.elements.offset;
}

}  // namespace

void for_stored(std::vector<StoredRange> stored, const std::vector<WantedRange>& wanted,
                const std::function<void(const StoredRange& source, const ElementRange& elements)>& part) {
  std::sort(stored.begin(), stored.end(), by_place);
  for (const auto& [range, type] : wanted) {
    const std::int64_t end = range.offset + range.count;
    std::int64_t at = range.offset;
    for (const StoredRange& source : stored) {
      if (at == end || source.elements.kind > range.kind) break;
      const std::int64_t source_end = source.elements.offset + source.elements.count;
      if (source.elements.kind != range.kind || source_end <= at) continue;
      if (source.elements.offset > at) break;
      require(source.type == type, "the stored " + name_of(range.kind) + " are " + name_of(source.type) + ", the model's are " + name_of(type));
      const std::int64_t count = std::min(end, source_end) - at;
      part(source, {range.kind, at, count});
      at += count;
    }
    require(at == end, "elements from " + std::to_string(at) + " on of the " + name_of(range.kind) + " are in no file");
  }
}

}  // namespace tinyllama
