/*
 * Faults in the file-system calls of real processes, below one folder: loaded with LD_PRELOAD into a runner and, as the environment is passed
 * on, into its workers. Counts the calls of all of them together, tells each in a trace, and at one of them kills every process at once, or
 * makes the call fail. Built by test/pipeline/fixtures/faults.ts; used by scripts/crash-campaign.ts.
 *
 *   FAULTS_ROOT    the folder; calls elsewhere pass untouched
 *   FAULTS_STATE   a file of sizeof(struct state) zero bytes, shared by the processes
 *   FAULTS_TRACE   a file that gets one line a counted call: number, pid, call, path
 *   FAULTS_AT      number of the call, 1 for the first; 0 for none
 *   FAULTS_EFFECT  kill | tear (half of a write happens, then kill) | an errno: ENOSPC EIO EROFS
 *   FAULTS_LASTING 1: all later calls fail too
 *   FAULTS_CALLS   changes | reads: which calls are counted
 *   FAULTS_CLOCK   seconds to add to the wall clock; FAULTS_CLOCK_AT: from that call on
 *
 * Node's libuv calls libc (not io_uring, which UV_USE_IO_URING=0 keeps off). Nothing here allocates or locks: wrappers run in any thread, also
 * between fork and exec. The real calls are made by number, so that no symbol has to be looked up.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PROCESSES = 256, MAX_FDS = 4096 };
enum class_of { CHANGE, READ };

struct state {
  _Atomic int count;
  _Atomic int dead;
  _Atomic int processes;
  int pids[MAX_PROCESSES];
};

static struct state* state;
static char root[1024];
static size_t root_length;
static int trace = -1;
static int at, effect_errno, kills, tears, lasting, clock_at;
static enum class_of counted;
static long clock_offset;
/* File descriptors that lie below the folder. */
static _Atomic unsigned char below[MAX_FDS];

static int is_below(const char* path) {
  return path != NULL && root_length > 0 && strncmp(path, root, root_length) == 0 &&
         (path[root_length] == '/' || path[root_length] == 0);
}

static int fd_path(int fd, char* path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, size - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return 1;
}

static int fd_is_below(int fd) { return fd >= 0 && fd < MAX_FDS && below[fd]; }

static void remember(int fd, int is) {
  if (fd >= 0 && fd < MAX_FDS) below[fd] = (unsigned char)is;
}

static const struct { const char* name; int number; } errnos[] = {
    {"ENOSPC", ENOSPC}, {"EIO", EIO}, {"EROFS", EROFS}, {"EDQUOT", EDQUOT}};

static int number_in(const char* name) {
  const char* text = getenv(name);
  return text == NULL ? 0 : atoi(text);
}

__attribute__((constructor)) static void start(void) {
  const char* folder = getenv("FAULTS_ROOT");
  const char* file = getenv("FAULTS_STATE");
  if (folder == NULL || file == NULL || strlen(folder) >= sizeof root) return;
  int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC, 0);
  if (fd < 0) return;
  void* shared = mmap(NULL, sizeof(struct state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  syscall(SYS_close, fd);
  if (shared == MAP_FAILED) return;
  const char* trace_file = getenv("FAULTS_TRACE");
  if (trace_file != NULL) {
    int opened = (int)syscall(SYS_openat, AT_FDCWD, trace_file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    trace = (int)syscall(SYS_fcntl, opened, F_DUPFD_CLOEXEC, 1000);
    syscall(SYS_close, opened);
  }
  at = number_in("FAULTS_AT");
  lasting = number_in("FAULTS_LASTING");
  clock_offset = number_in("FAULTS_CLOCK");
  clock_at = number_in("FAULTS_CLOCK_AT");
  const char* effect = getenv("FAULTS_EFFECT");
  if (effect != NULL) {
    tears = strcmp(effect, "tear") == 0;
    kills = tears || strcmp(effect, "kill") == 0;
    for (size_t i = 0; i < sizeof errnos / sizeof *errnos; i++)
      if (strcmp(effect, errnos[i].name) == 0) effect_errno = errnos[i].number;
  }
  const char* calls = getenv("FAULTS_CALLS");
  counted = calls != NULL && strcmp(calls, "reads") == 0 ? READ : CHANGE;
  strcpy(root, folder);
  state = shared;
  int index = atomic_fetch_add(&state->processes, 1);
  if (index < MAX_PROCESSES) state->pids[index] = getpid();
  root_length = strlen(root);
  /* A worker's stdout and stderr are opened by its runner. */
  for (int i = 0; i < 64; i++) {
    char path[1200];
    remember(i, fd_path(i, path, sizeof path) && is_below(path));
  }
}

static void end_now(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

/* All processes at once, but no stranger that got the pid of one that has ended: it would run another program. */
static void kill_all(void) {
  char ours[1024], theirs[1024], link[64];
  long length = syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", ours, sizeof ours);
  int self = getpid(), count = state->processes;
  for (int i = 0; i < count && i < MAX_PROCESSES; i++) {
    int pid = state->pids[i];
    snprintf(link, sizeof link, "/proc/%d/exe", pid);
    long other = syscall(SYS_readlinkat, AT_FDCWD, link, theirs, sizeof theirs);
    if (pid > 0 && pid != self && other == length && memcmp(ours, theirs, (size_t)length) == 0) kill(pid, SIGKILL);
  }
  end_now();
}

/* Counts and tells the call. Returns 0 to go on, an errno to fail with, or -1 when the process must die (after half a write, where told). */
static int strike(enum class_of kind, const char* call, const char* path) {
  if (state == NULL) return 0;
  /* A process that was only starting when all were killed ends here: nobody knew of it. */
  if (state->dead) end_now();
  if (kind != counted) return 0;
  int number = atomic_fetch_add(&state->count, 1) + 1;
  if (trace >= 0) {
    char line[2048];
    int length = snprintf(line, sizeof line, "%d %d %s %s\n", number, getpid(), call, path + root_length);
    if (length > 0) syscall(SYS_write, trace, line, (size_t)length < sizeof line ? (size_t)length : sizeof line);
  }
  if (at == 0 || number < at || (number > at && !lasting)) return 0;
  if (effect_errno != 0) return effect_errno;
  if (!kills) return 0;
  state->dead = 1;
  return -1;
}

static int refuse(int code) {
  if (code < 0) kill_all();
  errno = code;
  return -1;
}

#define GUARD_PATH(kind, call, path)                             \
  if (is_below(path)) {                                          \
    int struck = strike(kind, call, path);                       \
    if (struck != 0) return refuse(struck);                      \
  }

#define GUARD_FD(kind, call, fd)                                 \
  if (fd_is_below(fd)) {                                         \
    char path[1200];                                             \
    int struck = fd_path(fd, path, sizeof path) && is_below(path) ? strike(kind, call, path) : 0; \
    if (struck != 0) return refuse(struck);                      \
  }

static int open_file(int folder, const char* path, int flags, mode_t mode) {
  int inside = is_below(path);
  if (inside) {
    int changes = (flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR)) != 0;
    int struck = strike(changes ? CHANGE : READ, changes ? "create" : "open", path);
    if (struck != 0) return refuse(struck);
  }
  int fd = (int)syscall(SYS_openat, folder, path, flags, mode);
  if (fd >= 0) remember(fd, inside);
  return fd;
}

#define OPEN(name, flag)                                         \
  int name(const char* path, int flags, ...) {                   \
    va_list more;                                                \
    va_start(more, flags);                                       \
    mode_t mode = (mode_t)va_arg(more, unsigned);                \
    va_end(more);                                                \
    return open_file(AT_FDCWD, path, flags | (flag), mode);      \
  }
OPEN(open, 0)
OPEN(open64, O_LARGEFILE)

int openat(int folder, const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  mode_t mode = (mode_t)va_arg(more, unsigned);
  va_end(more);
  return open_file(folder, path, flags, mode);
}

int close(int fd) {
  remember(fd, 0);
  return (int)syscall(SYS_close, fd);
}

int dup2(int from, int to) {
  int fd = (int)syscall(SYS_dup3, from, to, 0);
  if (fd >= 0 && from < MAX_FDS) remember(fd, fd_is_below(from));
  return fd;
}

/* A write that is torn, or that fails, may have happened in half: that is what a full disk does. */
#define WRITE(half)                                              \
  if (fd_is_below(fd)) {                                         \
    char path[1200];                                             \
    int struck = fd_path(fd, path, sizeof path) && is_below(path) ? strike(CHANGE, "write", path) : 0; \
    if (struck != 0) {                                           \
      if (tears || (struck > 0 && size > 1)) (void)!(half);      \
      return refuse(struck);                                     \
    }                                                            \
  }

ssize_t write(int fd, const void* bytes, size_t size) {
  WRITE(syscall(SYS_write, fd, bytes, size / 2))
  return syscall(SYS_write, fd, bytes, size);
}

ssize_t pwrite64(int fd, const void* bytes, size_t size, off64_t offset) {
  WRITE(syscall(SYS_pwrite64, fd, bytes, size / 2, offset))
  return syscall(SYS_pwrite64, fd, bytes, size, offset);
}

ssize_t writev(int fd, const struct iovec* parts, int count) {
  GUARD_FD(CHANGE, "write", fd)
  return syscall(SYS_writev, fd, parts, count);
}

int fsync(int fd) {
  GUARD_FD(CHANGE, "fsync", fd)
  return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
  GUARD_FD(CHANGE, "fsync", fd)
  return (int)syscall(SYS_fdatasync, fd);
}

int ftruncate64(int fd, off64_t size) {
  GUARD_FD(CHANGE, "truncate", fd)
  return (int)syscall(SYS_ftruncate, fd, size);
}

int futimens(int fd, const struct timespec times[2]) {
  GUARD_FD(CHANGE, "utimes", fd)
  return (int)syscall(SYS_utimensat, fd, NULL, times, 0);
}

int utimensat(int folder, const char* path, const struct timespec times[2], int flags) {
  GUARD_PATH(CHANGE, "utimes", path)
  return (int)syscall(SYS_utimensat, folder, path, times, flags);
}

int rename(const char* from, const char* to) {
  GUARD_PATH(CHANGE, "rename", to)
  return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int link(const char* from, const char* to) {
  GUARD_PATH(CHANGE, "link", to)
  return (int)syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int symlink(const char* target, const char* path) {
  GUARD_PATH(CHANGE, "symlink", path)
  return (int)syscall(SYS_symlinkat, target, AT_FDCWD, path);
}

int unlink(const char* path) {
  GUARD_PATH(CHANGE, "unlink", path)
  return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

int rmdir(const char* path) {
  GUARD_PATH(CHANGE, "rmdir", path)
  return (int)syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}

int mkdir(const char* path, mode_t mode) {
  GUARD_PATH(CHANGE, "mkdir", path)
  return (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

ssize_t read(int fd, void* bytes, size_t size) {
  GUARD_FD(READ, "read", fd)
  return syscall(SYS_read, fd, bytes, size);
}

ssize_t pread64(int fd, void* bytes, size_t size, off64_t offset) {
  GUARD_FD(READ, "read", fd)
  return syscall(SYS_pread64, fd, bytes, size, offset);
}

typedef int (*scandir_type)(const char*, struct dirent64***, int (*)(const struct dirent64*),
                            int (*)(const struct dirent64**, const struct dirent64**));

int scandir64(const char* path, struct dirent64*** names, int (*filter)(const struct dirent64*),
              int (*compare)(const struct dirent64**, const struct dirent64**)) {
  GUARD_PATH(READ, "readdir", path)
  static _Atomic(scandir_type) real;
  scandir_type found = real;
  if (found == NULL) real = found = (scandir_type)dlsym(RTLD_NEXT, "scandir64");
  return found(path, names, filter, compare);
}

static long offset_now(void) { return state != NULL && state->count >= clock_at ? clock_offset : 0; }

int clock_gettime(clockid_t clock, struct timespec* now) {
  int result = (int)syscall(SYS_clock_gettime, clock, now);
  if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += offset_now();
  return result;
}

int gettimeofday(struct timeval* restrict now, void* restrict zone) {
  (void)zone;
  struct timespec precise;
  int result = clock_gettime(CLOCK_REALTIME, &precise);
  *now = (struct timeval){precise.tv_sec, precise.tv_nsec / 1000};
  return result;
}
