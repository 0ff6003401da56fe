// Who is named when a collective does not end: from logs written by hand, from processes that stop or die, and under MPI.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "native/core/error.h"
#include "native/distributed/diagnosis.h"
#include "native/distributed/open_communicator.h"
#include "test/native/device_check.h"
#include "test/native/distributed/mpirun.h"

using namespace tinyllama;
using check::expect;

namespace {

namespace fs = std::filesystem;

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "watchdog-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~Folder() { fs::remove_all(path_); }
  const std::string& path() const { return path_; }
  std::string report() const {
    std::ifstream file(path_ + "/watchdog.txt");
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }

 private:
  std::string path_;
};

void expect_in(const std::string& text, const std::string& part, const std::string& what) {
  expect(text.find(part) != std::string::npos, what + ": " + text);
}

CollectiveEntry gather(std::uint64_t position, std::uint64_t bytes = 64, int group = 3) {
  return {.position = position, .bytes = bytes, .kind = CollectiveKind::all_gather, .group = group};
}
CollectiveEntry scatter(std::uint64_t position) { return {.position = position, .bytes = 128, .kind = CollectiveKind::reduce_scatter, .group = 4}; }

void log_of_one_rank() {
  const Folder folder;
  {
    CollectiveLog log(folder.path(), 3, 8, "now");
    for (std::uint64_t i = 1; i <= 1500; ++i) {
      const CollectiveEntry entry = log.issue(gather(i));
      if (i == 1500) break;
      log.begin(entry.sequence);
      log.end(entry.sequence);
    }
    log.beat();
    const auto view = read_collective_log(folder.path(), 3, "now");
    expect(view && view->header.rank == 3 && view->header.size == 8 && view->header.process == getpid() && view->header.heartbeat == 1, "the header");
    expect(view && view->entries.size() == 1024 && view->entries.front().sequence == 477 && view->entries.back().position == 1500, "the last 1024 are kept");
    expect(view && view->entries[5].ended >= view->entries[5].begun && view->entries[5].begun >= view->entries[5].issued, "times in order");
    expect(view && view->entries.back().issued > 0 && view->entries.back().begun == 0, "one that has not begun");
    expect(!read_collective_log(folder.path(), 3, "before") && !read_collective_log(folder.path(), 4, "now"), "another run's, another rank's");
  }
  expect(fs::file_size(folder.path() + "/rank-00003.collectives") == 512 + 1024 * 64, "the file's size");
  fs::resize_file(folder.path() + "/rank-00003.collectives", 100);
  expect(!read_collective_log(folder.path(), 3, "now"), "a file that was cut off");
  std::string message;
  try {
    CollectiveLog log("/proc/nowhere", 0, 1, "now");
  } catch (const Error& error) {
    message = error.what();
  }
  expect_in(message, "/proc/nowhere/rank-00000.collectives", "a folder that cannot be made");
}

void named_from_logs() {
  const Folder folder;
  CollectiveLog zero(folder.path(), 0, 4, "now"), one(folder.path(), 1, 4, "now"), two(folder.path(), 2, 4, "now");
  for (CollectiveLog* log : {&zero, &one, &two}) log->end(log->issue(gather(120)).sequence);
  const CollectiveEntry waits = zero.issue(scatter(121));
  one.issue(scatter(121));
  const Stall stall{waits, 0, {0, 1, 2}, 61};
  const auto told = [&](const Stall& which, const Heartbeats& before) { return diagnose(folder.path(), "now", which, before); };
  expect(told(stall, {{1, 7}, {2, 7}}) ==
             "rank 2 stands before reduce-scatter 121 of group 4 (128 bytes) since 61 s (it is past all-gather 120 of group 3 (64 bytes)); ranks 0, 1 wait in it",
         "one that computes: " + told(stall, {{1, 7}, {2, 7}}));
  const Heartbeats still = read_heartbeats(folder.path(), "now", {1, 2});
  one.beat();
  expect_in(told(stall, still), ") does not move and stands before reduce-scatter 121 of group 4 (128 bytes) since 61 s; ranks 0, 1 wait in it", "one that is stopped");
  expect_in(told({waits, 0, {0, 1, 2, 3}, 61}, {}), "rank 3 has no log of this run and stands before reduce-scatter 121", "one that never came");
  two.issue(gather(121, 100));
  expect(explain_failure(folder.path(), "now", stall) ==
             "the ranks do not issue the same collectives: rank 2 issued all-gather 121 of group 3 (100 bytes), ranks 0, 1 issued reduce-scatter 121 of group 4 (128 bytes)",
         "one that issued another: " + explain_failure(folder.path(), "now", stall));
  expect(explain_failure(folder.path(), "now", {waits, 0, {0, 1}, 0}).empty(), "no mismatch among the others");
  // One that went wrong earlier, and has gone on since.
  const CollectiveEntry next = zero.issue(gather(122));
  two.issue(gather(122));
  expect_in(told({next, 0, {0, 1, 2}, 61}, {}), "rank 2 issued all-gather 121 of group 3 (100 bytes), ranks 0, 1 issued reduce-scatter 121", "one that issued another before");
  expect_in(told({waits, 0, {0, 1}, 61}, {}), "all ranks are in reduce-scatter 121", "all are in it");
  two.close_in_order();
  expect(ended_members(folder.path(), "now", {0, 1, 2}).empty(), "who has left in order has not died");
}

// What stands for a collective that never ends: the other ranks' part is not in it.
class Stuck final : public Communicator {
 public:
  explicit Stuck(int rank) : rank_(rank) {}
  std::string name() const override { return "stuck"; }
  int rank() const override { return rank_; }
  int size() const override { return 2; }
  Ticket all_gather(void*, const void*, std::size_t, CollectiveLabel) override { return 0; }
  Ticket reduce_scatter(float*, const float*, std::int64_t, CollectiveLabel) override { return 1; }
  Ticket all_reduce(float*, std::int64_t, CollectiveLabel) override {
    for (;;) pause();
  }
  Ticket all_to_all(void*, const void*, std::size_t, CollectiveLabel) override { throw Error("the wire is cut"); }
  void wait(Ticket) override {}
  void exchange(void*, const void*, std::size_t) override {}
  std::unique_ptr<Communicator> split(const std::vector<int>&) override { return nullptr; }
  // A reduce-scatter goes on after its call has returned.
  Progress progress(Ticket ticket) override { return ticket == 1 ? Progress::running : Progress::over; }

 private:
  int rank_;
};

pid_t start(const std::function<void()>& act) {
  const pid_t child = fork();
  if (child != 0) return child;
  act();
  _exit(0);
}

// The exit code, or 124 where the process had to be killed after `seconds`.
int end_of(pid_t process, double seconds) {
  int status = 0;
  for (int i = 0; i < static_cast<int>(seconds * 20); ++i) {
    if (waitpid(process, &status, WNOHANG) == process) return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  kill(process, SIGKILL);
  waitpid(process, &status, 0);
  return 124;
}

// Rank 0 waits in a collective for rank 1, which does `other`. What rank 0 said at its end.
std::string waits_for(const std::function<void(Communicator&)>& other, bool asynchronous, double within) {
  const Folder folder;
  const auto open = [&](int rank) { return watch(std::make_unique<Stuck>(rank), {folder.path(), "now", 4}); };
  const pid_t first = start([&] {
    const auto ranks = open(0);
    float value = 0;
    ranks->all_gather(&value, &value, 4, {});
    if (asynchronous) ranks->reduce_scatter(&value, &value, 1, {.group = 5});
    else ranks->all_reduce(&value, 1, {.group = 5});
    std::this_thread::sleep_for(std::chrono::seconds(60));
  });
  const pid_t second = start([&] {
    const auto ranks = open(1);
    float value = 0;
    ranks->all_gather(&value, &value, 4, {});
    other(*ranks);
  });
  const int code = end_of(first, within);
  expect(code == watchdog_exit_code, "the exit code of who waits: " + std::to_string(code));
  kill(second, SIGKILL);
  waitpid(second, nullptr, 0);
  return folder.report();
}

void named_by_processes() {
  expect_in(waits_for([](Communicator&) { raise(SIGSTOP); }, false, 20), "does not move and stands before all-reduce 2 of group 5 (4 bytes) since ",
            "a rank that stopped itself");
  expect_in(waits_for([](Communicator&) { std::this_thread::sleep_for(std::chrono::seconds(60)); }, true, 20),
            " s (it is past all-gather 1 (4 bytes)); rank 0 waits in it",
            "a rank that computes on, while a collective that does not block is under way");
  expect_in(waits_for([](Communicator& ranks) {
              float value = 0;
              ranks.reduce_scatter(&value, &value, 1, {});
              std::this_thread::sleep_for(std::chrono::seconds(60));
            }, false, 20),
            "the ranks do not issue the same collectives: rank 0 issued all-reduce 2 of group 5 (4 bytes), rank 1 issued reduce-scatter 2 (4 bytes), since ",
            "a rank that issued another");
}

void no_word_without_need() {
  const Folder folder;
  std::string message;
  {
    const auto ranks = watch(std::make_unique<Stuck>(0), {folder.path(), "now", 1});
    float value = 0;
    ranks->all_gather(&value, &value, 4, {});
    // Between two collectives a rank may take its time.
    std::this_thread::sleep_for(std::chrono::seconds(2));
    try {
      ranks->all_to_all(&value, &value, 4, {.group = 1});
    } catch (const Error& error) {
      message = error.what();
    }
  }
  expect(message == "the wire is cut in all-to-all 2 of group 1 (4 bytes)", "an error of the backend: " + message);
  expect(folder.report().empty(), "no report");
  const auto view = read_collective_log(folder.path(), 0, "now");
  expect(view && view->header.closed == 1 && view->entries.size() == 2 && view->entries[0].ended > 0, "the log of a rank that has left");
}

// Under mpirun: rank 1 does not do as the others.
int run_rank(const std::string& what, const std::string& folder) {
  const auto device = make_cpu_device(1);
  const int rank = check::launched_rank(), size = check::launched_size();
  std::vector<float> values(64), all(64 * static_cast<std::size_t>(size));
  const Agreement agreement = {{"seed", what == "seed" && rank == 1 ? "8" : "7"}};
  try {
    const auto ranks = open_communicator(
        {.kind = CommunicatorKind::mpi, .rank = rank, .size = size, .agreement = agreement, .log_folder = folder, .collective_timeout = 4}, *device);
    ranks->all_gather(all.data(), values.data(), 64 * sizeof(float), {.group = 0});
    if (rank == 1 && what == "stop") raise(SIGSTOP);
    if (rank == 1 && what == "other") ranks->all_reduce(values.data(), 32, {.group = 1});
    ranks->reduce_scatter(values.data(), all.data(), 64, {.group = 2});
    ranks->exchange(all.data(), values.data(), 4);
  } catch (const Error& error) {
    std::ofstream(folder + "/error-" + std::to_string(rank)) << error.what();
    // Long enough for the others to find theirs: an exit ends them.
    std::this_thread::sleep_for(std::chrono::seconds(1));
    return 1;
  }
  return 0;
}

void named_under_mpi() {
  const auto run = [](const std::string& what, const Folder& folder) {
    const auto begun = std::chrono::steady_clock::now();
    const int code = check::mpirun(3, "--rank " + what + " " + folder.path() + " 2> " + folder.path() + "/stderr", 60);
    expect(std::chrono::steady_clock::now() - begun < std::chrono::seconds(20), what + ": the ranks end in time");
    return code;
  };
  const Folder well, stopped, other, seed;
  expect(run("well", well) == 0 && well.report().empty(), "ranks that all do the same");
  expect(run("stop", stopped) == watchdog_exit_code, "the exit code beside a stopped rank");
  expect_in(stopped.report(), "does not move and stands before reduce-scatter 4 of group 2 (256 bytes) since ", "a stopped rank");
  // MPI may notice that sizes differ, or wait for ever: either way the ranks are named.
  expect(run("other", other) != 0, "the exit code beside a rank that issued another collective");
  std::string said = other.report();
  for (const char* rank : {"0", "1", "2"}) {
    std::ifstream file(other.path() + "/error-" + rank);
    said += std::string(std::istreambuf_iterator<char>(file), {});
  }
  expect_in(said, "rank 1 issued all-reduce", "a rank that issued another collective");
  expect(run("seed", seed) != 0, "the exit code of ranks that disagree");
  for (const char* rank : {"0", "1", "2"}) {
    std::ifstream file(seed.path() + "/error-" + rank);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    expect_in(text, "the ranks differ in seed: ranks 0, 2 have 7, rank 1 has 8", std::string("rank ") + rank + " that disagrees");
  }
}

void a_dead_process() {
  // A child of this process stays a zombie until it is waited for, and a zombie still has its id: so it is waited for while the other waits in vain.
  const Folder folder;
  const pid_t first = start([&] {
    const auto ranks = watch(std::make_unique<Stuck>(0), {folder.path(), "now", 30});
    float value = 0;
    ranks->all_reduce(&value, 1, {});
  });
  const pid_t second = start([&] {
    const auto ranks = watch(std::make_unique<Stuck>(1), {folder.path(), "now", 30});
    raise(SIGKILL);
  });
  waitpid(second, nullptr, 0);
  const int code = end_of(first, 20);
  expect(code == watchdog_exit_code, "the exit code beside a dead rank: " + std::to_string(code));
  expect_in(folder.report(), "has ended and stands before all-reduce 1 (4 bytes) since ", "a rank that was killed");
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 3 && std::string(arguments[1]) == "--rank") return run_rank(arguments[2], arguments[3]);
  named_by_processes();  // forks, so before there are threads
  a_dead_process();
  log_of_one_rank();
  named_from_logs();
  no_word_without_need();
  const std::string obstacle = check::mpi_obstacle();
  if (obstacle.empty()) named_under_mpi();
  std::printf("watchdog: %s\n", check::failures == 0 ? "all named" : "FAILED");
  if (check::failures > 0) return 1;
  if (obstacle.empty()) return 0;
  std::printf("skipped the ranks under mpirun: %s\n", obstacle.c_str());
  return 77;
}
