// The file of plans: kept, read again, the first of two writers counts, what does not parse is passed over, what cannot be written is said.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "native/device/cuda/matmul_plan_file.h"

namespace {

using tinyllama::MatmulPlanFile;

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s\n", what);
}

std::string text_of(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}

}  // namespace

int main() {
  const auto folder = std::filesystem::temp_directory_path() / ("plan-file-test-" + std::to_string(getpid()));
  const std::string file = (folder / "below" / "a.plans").string();
  const MatmulPlanFile::Algorithm one{1, 2, 3, 4, 5, 6, 7, ~0ULL}, two{8, 7, 6, 5, 4, 3, 2, 1};

  MatmulPlanFile writer(file), rival(file);
  expect(writer.find("NT 1x2x3") == nullptr, "nothing is known at first");
  expect(writer.keep("NT 1x2x3", one) == one && writer.problem().empty(), "a plan is kept, and the folder made");
  expect(rival.keep("NT 1x2x3", two) == one, "the plan of the process that wrote first counts");
  expect(rival.keep("NN 4x5x6", two) == two, "another product gets its own plan");
  const MatmulPlanFile reader(file);
  expect(reader.find("NT 1x2x3") != nullptr && *reader.find("NT 1x2x3") == one && *reader.find("NN 4x5x6") == two, "a later process reads both");

  // A crash in mid-write, then another plan behind it; a digit changed; bytes of no meaning.
  const std::string whole = text_of(file);
  std::ofstream(file, std::ios::trunc) << whole.substr(0, whole.size() - 9);
  MatmulPlanFile after(file);
  expect(after.find("NT 1x2x3") != nullptr && after.find("NN 4x5x6") == nullptr, "a line cut off is passed over");
  after.keep("TN 7x8x9", two);
  expect(MatmulPlanFile(file).find("TN 7x8x9") != nullptr, "a plan behind a line cut off is read");
  std::string changed = whole;
  changed[changed.find("0000000000000003")] = '1';
  std::ofstream(file, std::ios::trunc) << std::string("\0\xff | | \n", 7) << changed;
  expect(MatmulPlanFile(file).find("NT 1x2x3") == nullptr && MatmulPlanFile(file).find("NN 4x5x6") != nullptr, "a changed line is passed over");

  MatmulPlanFile nowhere("/proc/no/such/folder/a.plans");
  expect(nowhere.keep("NT 1x2x3", one) == one && *nowhere.find("NT 1x2x3") == one, "what cannot be written holds for the process");
  expect(nowhere.problem().find("/proc/no/such/folder/a.plans: ") == 0, "and the reason is told");

  setenv("TINYLLAMA_PLAN_CACHE", "/somewhere", 1);
  expect(MatmulPlanFile::place("NVIDIA H200-132", "13.1.1") == "/somewhere/matmul-NVIDIA_H200-132-cublaslt-13.1.1.plans", "TINYLLAMA_PLAN_CACHE is the folder");
  unsetenv("TINYLLAMA_PLAN_CACHE");
  unsetenv("XDG_CACHE_HOME");
  setenv("HOME", "/home/user", 1);
  expect(MatmulPlanFile::place("G", "1").find("/home/user/.cache/tinyllama/") == 0, "then ~/.cache/tinyllama");
  unsetenv("HOME");
  MatmulPlanFile homeless(MatmulPlanFile::place("G", "1"));
  expect(homeless.keep("NT 1x2x3", one) == one && !homeless.problem().empty(), "without a home nothing is kept, and that is told");

  std::filesystem::remove_all(folder);
  std::printf("matmul_plan_file_test: %s\n", failures == 0 ? "ok" : "failed");
  return failures == 0 ? 0 : 1;
}
