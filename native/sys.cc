#include "sys.h"

#include <fcntl.h>
#include <linux/ioctl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "args.h"
#include "environment.h"
#include "failure.h"

namespace ubd {

namespace {

Napi::Value Eventfd(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "eventfd");
  const uint32_t initial = args.Uint32(0, "initial");
  if (!args.ok()) return env.Undefined();
  // Not EFD_NONBLOCK: a read through a ring would be answered EAGAIN at once on some kernels.
  return ToNumber(env, ResultOrErrno(eventfd(initial, EFD_CLOEXEC)));
}

// A blocking inotify of one directory: names that come and go, and nothing else. Whoever listens
// for more is told of each write to what lies there, and the writer pays for it.
Napi::Value WatchNames(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "watchNames");
  const std::string path = args.Text(0, "path");
  if (!args.ok()) return env.Undefined();
  const int fd = inotify_init1(IN_CLOEXEC);
  if (fd < 0) return ToNumber(env, -errno);
  constexpr uint32_t kNames = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO;
  if (inotify_add_watch(fd, path.c_str(), kNames | IN_ONLYDIR) < 0) {
    const int failure = errno;
    close(fd);
    return ToNumber(env, -failure);
  }
  return ToNumber(env, fd);
}

// Two ends of a stream, close-on-exec and blocking: whoever wants another mode sets it.
Napi::Value Socketpair(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "socketpair");
  const std::span<uint8_t> ends = args.Bytes(0, "ends");
  if (args.ok() && ends.size() != 2 * sizeof(int)) args.OutOfRange("ends", "two int32 long");
  if (!args.ok()) return env.Undefined();
  int fds[2] = {-1, -1};
  const int64_t result = ResultOrErrno(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
  if (result == 0) memcpy(ends.data(), fds, sizeof fds);
  return ToNumber(env, result);
}

// setSendBuffer(fd, bytes): 0 | -errno
Napi::Value SetSendBuffer(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "setSendBuffer");
  const int fd = args.Fd(0);
  const uint32_t bytes = args.Uint32(1, "bytes", INT32_MAX / 2);
  if (!args.ok()) return env.Undefined();
  int domain = 0;
  socklen_t length = sizeof domain;
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) != 0) return ToNumber(env, -errno);
  if (domain != AF_UNIX) return ToNumber(env, -EOPNOTSUPP);
  const int half = static_cast<int>(bytes / 2);  // the kernel doubles it, for its own bookkeeping
  int result = setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &half, sizeof half);
  if (result != 0 && errno == EPERM)
    result = setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &half, sizeof half);
  return ToNumber(env, ResultOrErrno(result));
}

// O_NONBLOCK belongs to what is open, not to the descriptor: it goes for the original, too.
Napi::Value Duplicate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "duplicate");
  const int fd = args.Fd(0);
  if (!args.ok()) return env.Undefined();
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
    return ToNumber(env, ResultOrErrno(-1));
  return ToNumber(env, ResultOrErrno(fcntl(fd, F_DUPFD_CLOEXEC, 0)));
}

Napi::Value Close(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "close");
  const int fd = args.Fd(0);
  if (!args.ok()) return env.Undefined();
  if (Environment::Of(info).rings.Find(fd) != nullptr) {
    args.OutOfRange("fd", "no ring: those are closed by ringClose");
    return env.Undefined();
  }
  // EINTR is not retried: on Linux the descriptor is gone by then.
  return ToNumber(env, ResultOrErrno(close(fd)));
}

// takeDescriptor(pid, fd): a descriptor of ours of what another process has open as `fd`.
Napi::Value TakeDescriptor(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "takeDescriptor");
  const int pid = args.Int32(0, "pid");
  const int fd = args.Fd(1);
  if (!args.ok()) return env.Undefined();
  // glibc has neither before 2.36.
  const int process = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (process < 0) return ToNumber(env, ResultOrErrno(-1));
  const int64_t taken = ResultOrErrno(syscall(SYS_pidfd_getfd, process, fd, 0));
  close(process);
  return ToNumber(env, taken);
}

Napi::Value Flock(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "flock");
  const int fd = args.Fd(0);
  const int operation = args.Int32(1, "operation");
  if (!args.ok()) return env.Undefined();
  int64_t result = 0;
  do {
    result = ResultOrErrno(flock(fd, operation));
  } while (result == -EINTR);
  return ToNumber(env, result);
}

Napi::Value Lseek(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "lseek");
  const int fd = args.Fd(0);
  const double position = args.Whole(1, "position", -kSafeIntegerMax, kSafeIntegerMax);
  const int whence = args.Int32(2, "whence");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(lseek(fd, static_cast<off_t>(position), whence)));
}

Napi::Value Fallocate(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "fallocate");
  const int fd = args.Fd(0);
  const int mode = args.Int32(1, "mode");
  const double position = args.Whole(2, "position", 0, kSafeIntegerMax);
  const double length = args.Whole(3, "length", 0, kSafeIntegerMax);
  if (!args.ok()) return env.Undefined();
  int64_t result = 0;
  do {
    result = ResultOrErrno(
        fallocate(fd, mode, static_cast<off_t>(position), static_cast<off_t>(length)));
  } while (result == -EINTR);
  return ToNumber(env, result);
}

// The argument of an ioctl, of which the kernel alone knows how much it reads and writes.
//
// Most requests encode the size of their structure (_IOC_SIZE), and the buffer must have that size.
// Older ones (LOOP_SET_STATUS64 and its kin) encode nothing, and some go beyond what they encode
// (FIEMAP's extents). So the kernel never works on the JavaScript buffer but on a copy in pages of
// its own, with at least 16 KiB (the largest size that a request can encode) and a guard page
// behind it: whatever it writes too far is cut off, or ends in EFAULT; it never lands in memory of
// ours. What this cannot guard is a structure that holds pointers itself (SG_IO): no such request
// is used here.
class IoctlArgument {
 public:
  static constexpr size_t kScratchMin = size_t{1} << _IOC_SIZEBITS;
  // Nothing is ever mapped below this address (vm.mmap_min_addr), and the highest ones belong to
  // the kernel: a number in between these limits is an integer even for a request that takes a
  // pointer, which then answers EFAULT.
  static constexpr double kIntegerMax = 65535;
  static constexpr double kIntegerMin = -4095;
  static constexpr size_t kBytesMax = size_t{1} << 20;

  // Reads argument `index`; false with an exception pending.
  bool Read(Args* args, size_t index, uint32_t request) {
    const uint32_t encoded = _IOC_DIR(request) != _IOC_NONE ? _IOC_SIZE(request) : 0;
    if (args->IsNumber(index)) {
      integer_ = static_cast<int64_t>(args->Whole(index, "argument", kIntegerMin, kIntegerMax));
      if (encoded > 0) args->WrongType("argument", "a Uint8Array for this request");
      return args->ok();
    }
    const std::span<uint8_t> bytes = args->Bytes(index, "argument");
    if (!args->ok()) return false;
    if (bytes.size() < encoded || bytes.size() > kBytesMax) {
      args->OutOfRange("argument", "from " + std::to_string(encoded) + " bytes to 1 MiB long");
      return false;
    }
    length_ = bytes.size();
    isBuffer_ = true;
    const size_t usable = RoundUpToPage(std::max(length_, kScratchMin));
    void* address =
        mmap(nullptr, usable + PageSize(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) return NoMemory(args);
    scratch_ = Mapping(address, usable + PageSize());
    if (mprotect(address, usable, PROT_READ | PROT_WRITE) != 0) return NoMemory(args);
    if (length_ > 0) memcpy(scratch_.data(), bytes.data(), length_);
    return true;
  }

  int64_t Run(int fd, uint32_t request) const {
    int64_t result = 0;
    do {
      // SAFETY: see above; the scratch pages live as long as this object.
      result = ResultOrErrno(isBuffer_ ? ioctl(fd, request, scratch_.data())
                                       : ioctl(fd, request, static_cast<unsigned long>(integer_)));
    } while (result == -EINTR);
    return result;
  }

  // Gives what the kernel wrote back to the caller's buffer, which may have become shorter
  // meanwhile.
  void WriteBack(std::span<uint8_t> bytes) const {
    const size_t length = std::min(bytes.size(), length_);
    if (length > 0) memcpy(bytes.data(), scratch_.data(), length);
  }

  bool isBuffer() const { return isBuffer_; }

 private:
  bool NoMemory(Args* args) {
    args->OutOfRange("argument", "short enough for the memory that is left");
    return false;
  }

  bool isBuffer_ = false;
  int64_t integer_ = 0;
  size_t length_ = 0;
  Mapping scratch_;
};

Napi::Value Ioctl(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "ioctl");
  const int fd = args.Fd(0);
  const uint32_t request = args.Uint32(1, "request");
  if (!args.ok()) return env.Undefined();
  IoctlArgument argument;
  if (!argument.Read(&args, 2, request)) return env.Undefined();
  const int64_t result = argument.Run(fd, request);
  if (argument.isBuffer()) argument.WriteBack(args.Bytes(2, "argument"));
  return ToNumber(env, result);
}

Napi::Value Fsopen(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "fsopen");
  const std::string name = args.Text(0, "name");
  const uint32_t flags = args.Uint32(1, "flags");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(syscall(SYS_fsopen, name.c_str(), flags)));
}

Napi::Value Fsconfig(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "fsconfig");
  const int fd = args.Fd(0);
  const uint32_t command = args.Uint32(1, "command");
  const std::optional<std::string> key = args.TextOrNull(2, "key");
  const std::optional<std::string> value = args.TextOrNull(3, "value");
  const int aux = args.Int32(4, "aux");
  // FSCONFIG_SET_BINARY would read `aux` bytes from `value`, however long that is.
  if (command == FSCONFIG_SET_BINARY) args.OutOfRange("command", "none that takes binary data");
  if (!args.ok()) return env.Undefined();
  const char* keyText = key ? key->c_str() : nullptr;
  const char* valueText = value ? value->c_str() : nullptr;
  return ToNumber(env,
                  ResultOrErrno(syscall(SYS_fsconfig, fd, command, keyText, valueText, aux)));
}

Napi::Value Fsmount(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "fsmount");
  const int fd = args.Fd(0);
  const uint32_t flags = args.Uint32(1, "flags");
  const uint32_t attributes = args.Uint32(2, "attributes");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(syscall(SYS_fsmount, fd, flags, attributes)));
}

Napi::Value Umount2(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "umount2");
  const std::string path = args.Text(0, "path");
  const int flags = args.Int32(1, "flags");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(umount2(path.c_str(), flags)));
}

Napi::Value RenameNew(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "renameNew");
  const std::string from = args.Text(0, "from");
  const std::string to = args.Text(1, "to");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(),
                                               RENAME_NOREPLACE)));
}

// Many options of prctl take addresses, or stop the process: only these are let through.
bool PrctlTakesNumbers(int option) {
#ifndef PR_SET_IO_FLUSHER  // Linux 5.6
#define PR_SET_IO_FLUSHER 57
#define PR_GET_IO_FLUSHER 58
#endif
  switch (option) {
    case PR_SET_IO_FLUSHER:
    case PR_GET_IO_FLUSHER:
    case PR_SET_TIMERSLACK:
    case PR_GET_TIMERSLACK:
    case PR_SET_DUMPABLE:
    case PR_GET_DUMPABLE:
    case PR_SET_PDEATHSIG:
      return true;
    default:
      return false;
  }
}

Napi::Value Prctl(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "prctl");
  const int option = args.Int32(0, "option");
  unsigned long values[4] = {};
  const char* const names[] = {"a2", "a3", "a4", "a5"};
  for (size_t i = 0; i < 4; i++)
    values[i] = static_cast<unsigned long>(args.Whole(i + 1, names[i], 0, kSafeIntegerMax));
  if (!PrctlTakesNumbers(option)) args.OutOfRange("option", "one that takes numbers only");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(prctl(option, values[0], values[1], values[2], values[3])));
}

// setScheduler(policy, priority): 0 | -errno. Of the calling thread alone: what it starts is as
// everybody else.
Napi::Value SetScheduler(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "setScheduler");
  const int policy = args.Int32(0, "policy");
  sched_param parameter = {};
  parameter.sched_priority = static_cast<int>(args.Uint32(1, "priority", 99));
  if (policy != SCHED_OTHER && policy != SCHED_RR && policy != SCHED_BATCH)
    args.OutOfRange("policy", "SCHED_OTHER, SCHED_RR or SCHED_BATCH");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env,
                  ResultOrErrno(sched_setscheduler(0, policy | SCHED_RESET_ON_FORK, &parameter)));
}

Napi::Value Mlockall(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "mlockall");
  const int flags = args.Int32(0, "flags");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(mlockall(flags)));
}

Napi::Value NetlinkSocket(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "netlinkSocket");
  const int protocol = args.Int32(0, "protocol");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)));
}

}  // namespace

void DefineSys(Napi::Env env, Napi::Object exports, void* environment) {
  exports.Set("eventfd", Napi::Function::New<Eventfd>(env, "eventfd", environment));
  exports.Set("watchNames", Napi::Function::New<WatchNames>(env, "watchNames", environment));
  exports.Set("socketpair", Napi::Function::New<Socketpair>(env, "socketpair", environment));
  exports.Set("setSendBuffer",
              Napi::Function::New<SetSendBuffer>(env, "setSendBuffer", environment));
  exports.Set("duplicate", Napi::Function::New<Duplicate>(env, "duplicate", environment));
  exports.Set("close", Napi::Function::New<Close>(env, "close", environment));
  exports.Set("takeDescriptor",
              Napi::Function::New<TakeDescriptor>(env, "takeDescriptor", environment));
  exports.Set("flock", Napi::Function::New<Flock>(env, "flock", environment));
  exports.Set("lseek", Napi::Function::New<Lseek>(env, "lseek", environment));
  exports.Set("fallocate", Napi::Function::New<Fallocate>(env, "fallocate", environment));
  exports.Set("ioctl", Napi::Function::New<Ioctl>(env, "ioctl", environment));
  exports.Set("fsopen", Napi::Function::New<Fsopen>(env, "fsopen", environment));
  exports.Set("fsconfig", Napi::Function::New<Fsconfig>(env, "fsconfig", environment));
  exports.Set("fsmount", Napi::Function::New<Fsmount>(env, "fsmount", environment));
  exports.Set("umount2", Napi::Function::New<Umount2>(env, "umount2", environment));
  exports.Set("renameNew", Napi::Function::New<RenameNew>(env, "renameNew", environment));
  exports.Set("prctl", Napi::Function::New<Prctl>(env, "prctl", environment));
  exports.Set("netlinkSocket",
              Napi::Function::New<NetlinkSocket>(env, "netlinkSocket", environment));
  exports.Set("setScheduler", Napi::Function::New<SetScheduler>(env, "setScheduler", environment));
  exports.Set("mlockall", Napi::Function::New<Mlockall>(env, "mlockall", environment));
}

}  // namespace ubd
