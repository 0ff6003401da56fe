// What keeps a collective from ending: found by reading the logs of the ranks that take part in it.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "native/distributed/collective_log.h"

namespace tinyllama {

struct Stall {
  CollectiveEntry entry;     // where this rank waits
  int rank = 0;              // which it is, of the world
  std::vector<int> members;  // ranks of the world that take part
  double seconds = 0;        // since when
};

// Heartbeats of the members, by rank.
using Heartbeats = std::map<int, std::uint64_t>;
Heartbeats read_heartbeats(const std::string& folder, const std::string& nonce, const std::vector<int>& members);

// The members whose processes are known to have ended without leaving in order.
std::vector<int> ended_members(const std::string& folder, const std::string& nonce, const std::vector<int>& members);

// Why a collective may have failed: ranks that issued something else, in this one's place or before, or have ended; empty where there are none.
std::string explain_failure(const std::string& folder, const std::string& nonce, const Stall& stall);

// One line: who stands elsewhere, or does not move. `before`: heartbeats of some time ago.
std::string diagnose(const std::string& folder, const std::string& nonce, const Stall& stall, const Heartbeats& before);

}  // namespace tinyllama
