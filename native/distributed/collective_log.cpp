#include "native/distributed/collective_log.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "native/core/error.h"

namespace tinyllama {
namespace {

constexpr char magic[8] = {'T', 'L', 'C', 'O', 'L', 'L', '0', '1'};

std::string path_of(const std::string& folder, int rank) {
  char name[32];
  std::snprintf(name, sizeof(name), "rank-%05d.collectives", rank);
  return (std::filesystem::path(folder) / name).string();
}

std::int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

void put(char (&field)[64], const std::string& text) { std::snprintf(field, sizeof(field), "%s", text.c_str()); }

std::string host_name() {
  char name[64] = "";
  gethostname(name, sizeof(name) - 1);
  return name;
}

// Process ids mean the same within one boot of one machine and one space of process ids (a container has its own).
std::string process_space() {
  std::array<char, 64> space{};
  const ssize_t length = readlink("/proc/self/ns/pid", space.data(), space.size() - 1);
  char boot[24] = "";
  if (std::FILE* file = std::fopen("/proc/sys/kernel/random/boot_id", "r")) {
    if (!std::fgets(boot, sizeof(boot), file)) boot[0] = '\0';
    std::fclose(file);
  }
  return (length > 0 ? space.data() : "pid:?") + std::string(" ") + boot;
}

// Of these, all processes see one memory; what another kind (NFS, Lustre) shows to other machines must be written out.
bool seen_by_this_machine_alone(int descriptor) {
  struct statfs kind {};
  if (fstatfs(descriptor, &kind) != 0) return false;
  constexpr std::uint64_t ext = 0xef53, xfs = 0x58465342, btrfs = 0x9123683e, tmpfs = 0x01021994, overlay = 0x794c7630;
  const auto type = static_cast<std::uint64_t>(kind.f_type) & 0xffffffff;
  return type == ext || type == xfs || type == btrfs || type == tmpfs || type == overlay;
}

template <class T>
void store(T& place, T value) {
  std::atomic_ref<T>(place).store(value, std::memory_order_release);
}

}  // namespace

std::string in_words(const CollectiveEntry& entry) {
  constexpr std::array names = {"nothing", "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "exchange"};
  const auto kind = static_cast<std::size_t>(entry.kind);
  std::string text = std::string(kind < names.size() ? names[kind] : "unknown") + " " + std::to_string(entry.position);
  if (entry.group >= 0) text += " of group " + std::to_string(entry.group);
  return text + " (" + std::to_string(entry.bytes) + " bytes)";
}

CollectiveLog::CollectiveLog(const std::string& folder, int rank, int size, const std::string& nonce) {
  const std::string path = path_of(folder, rank);
  std::error_code ignored;
  std::filesystem::create_directories(folder, ignored);
  const auto failed = [&](const char* what) {
    return Error("the log of collectives cannot be " + std::string(what) + ": " + path + ": " + std::strerror(errno) +
                 ": the folder must be one that all ranks can write to");
  };
  // A new file under the old name: who still reads the old one is not disturbed.
  unlink(path.c_str());
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) throw failed("made");
  constexpr std::size_t bytes = sizeof(CollectiveLogHeader) + capacity * sizeof(CollectiveEntry);
  // Blocks are taken now: on a full disk this fails, and not the first write into the mapping, which would kill the process.
  const int full = posix_fallocate(descriptor, 0, bytes);
  if (full == 0) memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  else errno = full;
  shared_ = !seen_by_this_machine_alone(descriptor);
  const int error = errno;
  close(descriptor);
  errno = error;
  if (full != 0 || memory_ == MAP_FAILED) throw failed("mapped");
  header_ = static_cast<CollectiveLogHeader*>(memory_);
  entries_ = reinterpret_cast<CollectiveEntry*>(header_ + 1);
  header_->capacity = capacity;
  header_->rank = rank;
  header_->size = size;
  header_->process = getpid();
  put(header_->host, host_name());
  put(header_->process_space, process_space());
  put(header_->nonce, nonce);
  std::memcpy(header_->magic, magic, sizeof(magic));
  publish();
}

CollectiveLog::~CollectiveLog() { munmap(memory_, sizeof(CollectiveLogHeader) + capacity * sizeof(CollectiveEntry)); }

CollectiveEntry CollectiveLog::issue(CollectiveEntry entry) {
  entry.sequence = header_->issued + 1;
  entry.issued = now();
  CollectiveEntry& place = at(entry.sequence);
  store(place.sequence, std::uint64_t{0});
  CollectiveEntry hidden = entry;
  hidden.sequence = 0;
  place = hidden;
  store(place.sequence, entry.sequence);
  store(header_->issued, entry.sequence);
  return entry;
}

void CollectiveLog::begin(std::uint64_t sequence) { store(at(sequence).begun, now()); }
void CollectiveLog::end(std::uint64_t sequence) { store(at(sequence).ended, now()); }
void CollectiveLog::beat() { store(header_->heartbeat, header_->heartbeat + 1); }
void CollectiveLog::publish() {
  if (shared_) msync(memory_, sizeof(CollectiveLogHeader) + capacity * sizeof(CollectiveEntry), MS_SYNC);
}
void CollectiveLog::close_in_order() {
  store(header_->closed, std::uint32_t{1});
  publish();
}

namespace {

// A file that is opened anew each time: a shared file system shows what others wrote when a file is opened.
class LogFile {
 public:
  LogFile(const std::string& folder, int rank) : descriptor_(open(path_of(folder, rank).c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~LogFile() {
    if (descriptor_ >= 0) close(descriptor_);
  }
  LogFile(const LogFile&) = delete;
  LogFile& operator=(const LogFile&) = delete;

  std::optional<CollectiveLogHeader> header(int rank, const std::string& nonce) const {
    CollectiveLogHeader header{};
    if (descriptor_ < 0 || pread(descriptor_, &header, sizeof(header), 0) != sizeof(header)) return std::nullopt;
    const bool known = std::memcmp(header.magic, magic, sizeof(magic)) == 0 && header.rank == rank && header.capacity <= most_entries &&
                       std::strncmp(header.nonce, nonce.c_str(), sizeof(header.nonce) - 1) == 0;
    return known ? std::optional(header) : std::nullopt;
  }
  std::vector<CollectiveEntry> entries(const CollectiveLogHeader& header) const {
    std::vector<CollectiveEntry> entries(header.capacity);
    const ssize_t got = pread(descriptor_, entries.data(), entries.size() * sizeof(CollectiveEntry), sizeof(header));
    entries.resize(static_cast<std::size_t>(std::max<ssize_t>(got, 0)) / sizeof(CollectiveEntry));
    std::erase_if(entries, [](const CollectiveEntry& entry) { return entry.sequence == 0; });
    std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.sequence < b.sequence; });
    return entries;
  }

 private:
  static constexpr std::uint32_t most_entries = 1 << 16;
  int descriptor_;
};

}  // namespace

std::optional<CollectiveLogHeader> read_collective_log_header(const std::string& folder, int rank, const std::string& nonce) {
  return LogFile(folder, rank).header(rank, nonce);
}

std::optional<CollectiveLogView> read_collective_log(const std::string& folder, int rank, const std::string& nonce) {
  const LogFile file(folder, rank);
  const auto header = file.header(rank, nonce);
  if (!header) return std::nullopt;
  return CollectiveLogView{*header, file.entries(*header)};
}

bool process_has_ended(const CollectiveLogHeader& header) {
  if (std::strncmp(header.host, host_name().c_str(), sizeof(header.host)) != 0 ||
      std::strncmp(header.process_space, process_space().c_str(), sizeof(header.process_space) - 1) != 0)
    return false;
  return kill(static_cast<pid_t>(header.process), 0) != 0 && errno == ESRCH;
}

}  // namespace tinyllama
