// Which algorithm of cuBLASLt a product uses, kept in a file. Algorithms are chosen by timing, and two processes may choose differently where
// two are nearly equal; different algorithms add in different orders and give different last bits. A choice once written is kept by every
// later process with the same GPU and library, so a resumed run multiplies as the interrupted one did.
//
// The file is text, one plan a line, "KEY | ALGORITHM | CHECK": the product, 8 hexadecimal words, and a digest of what stands before it. It
// only grows, under a lock; of two lines with one key the first counts, so processes that time at once still agree. Lines that do not parse
// (a crash in mid-write) are skipped.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>

namespace tinyllama {

class MatmulPlanFile {
 public:
  using Algorithm = std::array<std::uint64_t, 8>;

  // Reads `file`, which may not exist. Its folder is made at the first write.
  explicit MatmulPlanFile(std::string file);

  // In TINYLLAMA_PLAN_CACHE, else in $XDG_CACHE_HOME/tinyllama, else in ~/.cache/tinyllama; "" where none of the three variables is set.
  // The file's name holds the GPU and the library's version.
  static std::string place(const std::string& gpu, const std::string& library_version);

  const Algorithm* find(const std::string& key) const;

  // Writes the plan to the disk, and gives the one to use: that of another process where it wrote the key first. Where the file cannot be
  // written the plan holds for this process, and problem() says what stood in the way.
  Algorithm keep(const std::string& key, const Algorithm& algorithm);

  const std::string& file() const { return file_; }
  const std::string& problem() const { return problem_; }

 private:
  void read(int descriptor);

  std::string file_;
  std::string problem_;
  std::map<std::string, Algorithm> plans_;
};

}  // namespace tinyllama
