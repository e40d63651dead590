#include "sys.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "args.h"
#include "environment.h"
#include "failure.h"
#include "ioctl-argument.h"

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
  return ToNumber(env, ResultOrErrno(syscall(SYS_fsconfig, fd, command, key ? key->c_str() : nullptr,
                                             value ? value->c_str() : nullptr, aux)));
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

Napi::Value Mlockall(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "mlockall");
  const int flags = args.Int32(0, "flags");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(mlockall(flags)));
}

}  // namespace

void DefineSys(Napi::Env env, Napi::Object exports, void* environment) {
  exports.Set("eventfd", Napi::Function::New<Eventfd>(env, "eventfd", environment));
  exports.Set("close", Napi::Function::New<Close>(env, "close", environment));
  exports.Set("flock", Napi::Function::New<Flock>(env, "flock", environment));
  exports.Set("lseek", Napi::Function::New<Lseek>(env, "lseek", environment));
  exports.Set("fallocate", Napi::Function::New<Fallocate>(env, "fallocate", environment));
  exports.Set("ioctl", Napi::Function::New<Ioctl>(env, "ioctl", environment));
  exports.Set("fsopen", Napi::Function::New<Fsopen>(env, "fsopen", environment));
  exports.Set("fsconfig", Napi::Function::New<Fsconfig>(env, "fsconfig", environment));
  exports.Set("fsmount", Napi::Function::New<Fsmount>(env, "fsmount", environment));
  exports.Set("umount2", Napi::Function::New<Umount2>(env, "umount2", environment));
  exports.Set("prctl", Napi::Function::New<Prctl>(env, "prctl", environment));
  exports.Set("mlockall", Napi::Function::New<Mlockall>(env, "mlockall", environment));
}

}  // namespace ubd
