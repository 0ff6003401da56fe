#include "native/distributed/mpi/mpi_world.h"

#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>

#include "native/core/error.h"
#include "native/distributed/watched_communicator.h"

namespace tinyllama {
namespace {

constexpr int preempted = 75;

// The watchdog's clock for what no communicator does: ends the process when its scope lasts longer.
class TimeLimit {
 public:
  TimeLimit(std::chrono::seconds limit, std::string what)
      : thread_([this, limit, what = std::move(what)] {
          std::unique_lock lock(mutex_);
          if (over_.wait_for(lock, limit, [this] { return done_; })) return;
          const std::string said = "tinyllama: this rank ends: " + what + " since " + std::to_string(limit.count()) + " s: a rank is stuck or cannot be reached\n";
          [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, said.data(), said.size());
          _exit(watchdog_exit_code);
        }) {}
  ~TimeLimit() {
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
    }
    over_.notify_all();
    thread_.join();
  }
  TimeLimit(const TimeLimit&) = delete;
  TimeLimit& operator=(const TimeLimit&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool done_ = false;
  std::thread thread_;
};

constexpr std::chrono::seconds start_within{300}, end_within{60};

void finalize(int exit_code, void*) {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized || (exit_code != 0 && exit_code != preempted)) return;
  const TimeLimit limit(end_within, "it waits in MPI_Finalize for the others");
  MPI_Finalize();
}

void initialize() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized) return;
  // Calls come from several threads, one at a time.
  int provided = 0;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  require(provided >= MPI_THREAD_SERIALIZED, mpi_version() + " was built without threads: it offers level " + std::to_string(provided) +
                                                 " and MPI_THREAD_SERIALIZED is needed; install one with threads");
  on_exit(finalize, nullptr);
}

}  // namespace

void check_mpi(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  char word[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(status, word, &length);
  throw Error(mpi_version() + ": " + call + " failed: " + std::string(word, static_cast<std::size_t>(length)));
}

MPI_Comm mpi_world(int rank, int size) {
  const TimeLimit limit(start_within, "it waits in MPI_Init for the others");
  initialize();
  int own = 0, all = 0;
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &all), "MPI_Comm_size");
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &own), "MPI_Comm_rank");
  require(all == size, "WORLD_SIZE is " + std::to_string(size) + ", and MPI's world has " + std::to_string(all) +
                           ": the ranks must be started together by this MPI's own launcher, as in mpirun -n " + std::to_string(size) +
                           " or srun --mpi=pmix (" + mpi_version() + ")");
  require(own == rank, "RANK is " + std::to_string(rank) + ", and MPI calls this rank " + std::to_string(own) +
                           ": leave RANK unset under mpirun or srun, or set it to the launcher's number");
  MPI_Comm world = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup");
  return world;
}

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  // "Open MPI v4.1.4, package: Debian OpenMPI, …": the part before the first comma.
  std::string version(text, static_cast<std::size_t>(length));
  version = version.substr(0, version.find_first_of(",\n"));
  if (const auto v = version.find(" v"); v != std::string::npos) version.erase(v + 1, 1);
  return version;
}

}  // namespace tinyllama
