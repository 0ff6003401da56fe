// Which stored ranges hold the elements that are wanted.
#pragma once
#include <functional>
#include <vector>

#include "native/checkpoint/state_reader.h"

namespace tinyllama {

// Calls part(source, elements) for runs of elements that together are all that is wanted, in its order, each with the stored range that it lies in.
// Throws Error for elements that are in none, or of another type.
void for_stored(std::vector<StoredRange> stored, const std::vector<WantedRange>& wanted,
                const std::function<void(const StoredRange& source, const ElementRange& elements)>& part);

}  // namespace tinyllama
