#include "native/device/cuda/matmul_plan_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <system_error>
#include <utility>

namespace tinyllama {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  ~Descriptor() {
    if (value_ >= 0) close(value_);  // releases the lock, too
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

// FNV-1a
std::uint64_t digest(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char letter : text) hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001b3ULL;
  return hash;
}

std::string words(const std::uint64_t* values, std::size_t count) {
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    char word[20];
    std::snprintf(word, sizeof word, i == 0 ? "%016llx" : " %016llx", static_cast<unsigned long long>(values[i]));
    text += word;
  }
  return text;
}

std::string line_of(const std::string& key, const MatmulPlanFile::Algorithm& algorithm) {
  const std::string content = key + " | " + words(algorithm.data(), algorithm.size());
  const std::uint64_t check = digest(content);
  return content + " | " + words(&check, 1);
}

bool parse(const std::string& line, std::string& key, MatmulPlanFile::Algorithm& algorithm) {
  const std::size_t first = line.find(" | ");
  const std::size_t second = first == std::string::npos ? first : line.find(" | ", first + 3);
  if (second == std::string::npos) return false;
  key = line.substr(0, first);
  std::istringstream numbers(line.substr(first + 3, second - first - 3));
  for (std::uint64_t& word : algorithm)
    if (!(numbers >> std::hex >> word)) return false;
  return line == line_of(key, algorithm);
}

}  // namespace

std::string MatmulPlanFile::place(const std::string& gpu, const std::string& library_version) {
  namespace fs = std::filesystem;
  fs::path folder;
  if (const char* cache = std::getenv("TINYLLAMA_PLAN_CACHE"); cache != nullptr && *cache != 0) {
    folder = cache;
  } else if (const char* user = std::getenv("XDG_CACHE_HOME"); user != nullptr && *user != 0) {
    folder = fs::path(user) / "tinyllama";
  } else if (const char* home = std::getenv("HOME"); home != nullptr && *home != 0) {
    folder = fs::path(home) / ".cache" / "tinyllama";
  } else {
    return "";
  }
  std::string name = "matmul-" + gpu + "-cublaslt-" + library_version;
  for (char& letter : name)
    if (std::isalnum(static_cast<unsigned char>(letter)) == 0 && letter != '.' && letter != '-') letter = '_';
  return (folder / (name + ".plans")).string();
}

MatmulPlanFile::MatmulPlanFile(std::string file) : file_(std::move(file)) {
  if (file_.empty()) {
    problem_ = "neither TINYLLAMA_PLAN_CACHE nor HOME is set";
    return;
  }
  const Descriptor descriptor(open(file_.c_str(), O_RDONLY | O_CLOEXEC));
  if (descriptor.get() >= 0) read(descriptor.get());
}

void MatmulPlanFile::read(int descriptor) {
  std::string text;
  char block[4096];
  if (lseek(descriptor, 0, SEEK_SET) < 0) return;
  for (ssize_t count; (count = ::read(descriptor, block, sizeof block)) > 0;) text.append(block, static_cast<std::size_t>(count));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::string key;
    Algorithm algorithm{};
    if (parse(line, key, algorithm)) plans_.emplace(key, algorithm);
  }
}

const MatmulPlanFile::Algorithm* MatmulPlanFile::find(const std::string& key) const {
  const auto found = plans_.find(key);
  return found == plans_.end() ? nullptr : &found->second;
}

MatmulPlanFile::Algorithm MatmulPlanFile::keep(const std::string& key, const Algorithm& algorithm) {
  const auto fail = [&](const char* what) {
    problem_ = file_ + ": " + what + ": " + std::strerror(errno);
    plans_.emplace(key, algorithm);
    return plans_.at(key);
  };
  if (file_.empty()) return plans_.emplace(key, algorithm).first->second;
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(file_).parent_path(), error);
  const Descriptor descriptor(open(file_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (descriptor.get() < 0) return fail("cannot be opened");
  if (flock(descriptor.get(), LOCK_EX) != 0) return fail("cannot be locked");
  read(descriptor.get());
  if (const Algorithm* first = find(key)) return *first;
  // The line break in front ends what a crash may have left half written.
  const std::string line = "\n" + line_of(key, algorithm) + "\n";
  if (write(descriptor.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size())) return fail("cannot be written");
  if (fsync(descriptor.get()) != 0) return fail("does not reach the disk");
  return plans_.emplace(key, algorithm).first->second;
}

}  // namespace tinyllama
