// spawn, reap. Node's own spawn forks: it copies the tables of all of our pages, which then fault
// one by one when they are next written, on every thread. posix_spawn lends the child our memory
// until it runs its program: the calling thread waits so long, no other notices.
#include "process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "args.h"
#include "failure.h"
#include "owned.h"

namespace ubd {

namespace {

// What a child begins with: our words, no environment, no signal blocked or ignored, a session of
// its own; and of our descriptors the given ones, as 0, 1, 2 and so on.
class Start {
 public:
  Start() {
    posix_spawn_file_actions_init(&actions_);
    posix_spawnattr_init(&attributes_);
    sigset_t signals;
    sigfillset(&signals);
    posix_spawnattr_setsigdefault(&attributes_, &signals);
    sigemptyset(&signals);
    posix_spawnattr_setsigmask(&attributes_, &signals);
    posix_spawnattr_setflags(
        &attributes_, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
  }
  Start(const Start&) = delete;
  Start& operator=(const Start&) = delete;
  ~Start() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }

  // 0 or an errno. The child's numbers may be those of others that it gets: so each is first moved
  // out of their way.
  int Give(const std::vector<int>& fds) {
    for (size_t i = 0; i < fds.size(); i++) {
      moved_.emplace_back(fcntl(fds[i], F_DUPFD_CLOEXEC, static_cast<int>(fds.size())));
      if (moved_[i].get() < 0) return errno;
      const int failure =
          posix_spawn_file_actions_adddup2(&actions_, moved_[i].get(), static_cast<int>(i));
      if (failure != 0) return failure;
    }
    return 0;
  }

  // `words`: each ends with a NUL. The child's number, or -errno.
  int Run(std::string words) {
    std::vector<char*> argv;
    for (size_t at = 0; at < words.size(); at = words.find('\0', at) + 1)
      argv.push_back(words.data() + at);
    argv.push_back(nullptr);
    char* environment[] = {nullptr};
    pid_t pid = -1;
    // SAFETY: the words outlive the call, and the last one ends, too.
    const int failure =
        posix_spawn(&pid, argv[0], &actions_, &attributes_, argv.data(), environment);
    return failure != 0 ? -failure : pid;
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
  std::vector<Descriptor> moved_;
};

constexpr size_t kWordsBytesMax = size_t{1} << 20;
constexpr size_t kDescriptorsMax = 16;

// spawn(words, fds)
Napi::Value Spawn(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "spawn");
  const std::span<uint8_t> text = args.Bytes(0, "words");
  // What is checked is what is used: another thread may write to a shared buffer meanwhile.
  std::string words;
  if (text.size() <= kWordsBytesMax) words.assign(text.begin(), text.end());
  if (args.ok() && (words.empty() || words.back() != 0))
    args.OutOfRange("words", "words that end with NUL, up to 1 MiB");
  const std::span<uint8_t> numbers = args.Bytes(1, "fds");
  if (numbers.size() % sizeof(int) != 0 || numbers.size() / sizeof(int) > kDescriptorsMax)
    args.OutOfRange("fds", "up to 16 int32 long");
  if (!args.ok()) return env.Undefined();
  std::vector<int> fds(numbers.size() / sizeof(int));
  if (!fds.empty()) memcpy(fds.data(), numbers.data(), numbers.size());

  Start start;
  const int failure = start.Give(fds);
  if (failure != 0) return ToNumber(env, -failure);
  return ToNumber(env, start.Run(std::move(words)));
}

// reap(pid)
Napi::Value Reap(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "reap");
  // Not 0 or less, which stand for any child, also those of others.
  const int pid = static_cast<int>(args.Whole(0, "pid", 1, INT32_MAX));
  if (!args.ok()) return env.Undefined();
  int status = 0;
  const int64_t ended = ResultOrErrno(waitpid(pid, &status, WNOHANG));
  if (ended < 0) return ToNumber(env, ended);
  if (ended == 0) return ToNumber(env, -EAGAIN);
  return ToNumber(env, WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status));
}

}  // namespace

void DefineProcess(Napi::Env env, Napi::Object exports, void* environment) {
  exports.Set("spawn", Napi::Function::New<Spawn>(env, "spawn", environment));
  exports.Set("reap", Napi::Function::New<Reap>(env, "reap", environment));
}

}  // namespace ubd
