// The log of a rank's collectives: a ring of the last 1024 in a small file of fixed layout, <folder>/rank-00003.collectives, mapped into memory, so that
// the others can read where a rank stands that answers no more. Little-endian; a header of 512 bytes, then entries of 64.
#pragma once
#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tinyllama {

enum class CollectiveKind : std::uint32_t { all_gather = 1, reduce_scatter, all_reduce, all_to_all, exchange };

// One collective. Times are nanoseconds since 1970, 0 where it has not come to that.
struct CollectiveEntry {
  std::uint64_t sequence = 0;  // of this rank's collectives, from 1 on; 0: the place is empty, or being written
  std::uint64_t communicator = 0;  // who takes part: the same number on all its ranks, 0 is the world
  std::uint64_t position = 0;      // of that communicator's collectives, from 1 on
  std::uint64_t bytes = 0;         // of one part
  CollectiveKind kind{};
  std::int32_t group = -1;  // what it is for: a parameter group, or -1
  std::int64_t issued = 0, begun = 0, ended = 0;
};
static_assert(sizeof(CollectiveEntry) == 64);

struct CollectiveLogHeader {
  char magic[8];  // "TLCOLL01"
  std::uint32_t capacity;
  std::int32_t rank, size;
  std::uint32_t closed;     // 1: the rank has left in order
  std::int64_t process;     // its id,
  char host[64];            // on this machine,
  char process_space[64];   // and in this space of process ids
  char nonce[64];           // of this start of the run
  std::uint64_t heartbeat;  // grows while the process lives, also where no collective is issued
  std::uint64_t issued;     // the newest entry's sequence
  char reserved[512 - 240];
};
static_assert(sizeof(CollectiveLogHeader) == 512);

// "reduce-scatter 121 of group 4 (5242880 bytes)"
std::string in_words(const CollectiveEntry& entry);

class CollectiveLog {
 public:
  // Replaces what an earlier run left in the file. Throws Error where the folder cannot be written.
  CollectiveLog(const std::string& folder, int rank, int size, const std::string& nonce);
  ~CollectiveLog();
  CollectiveLog(const CollectiveLog&) = delete;
  CollectiveLog& operator=(const CollectiveLog&) = delete;

  // `entry` with its sequence and the time of issue, as it now stands in the log. One thread at a time.
  CollectiveEntry issue(CollectiveEntry entry);
  // From any thread, for an entry of the ring.
  void begin(std::uint64_t sequence);
  void end(std::uint64_t sequence);
  void beat();
  // Makes what is written visible to other machines, where the file lies on a shared file system.
  void publish();
  void close_in_order();

 private:
  CollectiveEntry& at(std::uint64_t sequence) { return entries_[sequence % capacity]; }

  static constexpr std::uint32_t capacity = 1024;
  void* memory_ = nullptr;
  CollectiveLogHeader* header_ = nullptr;
  CollectiveEntry* entries_ = nullptr;
  bool shared_ = false;
};

// What another rank's file tells.
struct CollectiveLogView {
  CollectiveLogHeader header{};
  std::vector<CollectiveEntry> entries;  // in order of their sequence
};

// None where the file is not there, is another run's, or is none.
std::optional<CollectiveLogView> read_collective_log(const std::string& folder, int rank, const std::string& nonce);
std::optional<CollectiveLogHeader> read_collective_log_header(const std::string& folder, int rank, const std::string& nonce);

// Whether the process that writes this log is known to have ended. Only a process of the same machine can know.
bool process_has_ended(const CollectiveLogHeader& header);

}  // namespace tinyllama
