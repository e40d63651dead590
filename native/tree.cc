#include "tree.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "args.h"
#include "failure.h"

namespace ubd {

namespace {

// Names come as bytes: those of a file system are no text. Without NUL, shorter than a page.
std::string Path(Args* args, size_t index, const char* name) {
  const std::span<uint8_t> bytes = args->Bytes(index, name);
  if (!args->ok()) return {};
  if (bytes.empty() || bytes.size() >= 4096 ||
      std::find(bytes.begin(), bytes.end(), uint8_t{0}) != bytes.end()) {
    args->OutOfRange(name, "from 1 to 4095 bytes, none of them NUL");
    return {};
  }
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// openBelow(fd, path, flags): opens what lies below a directory. No link is followed, and no other
// mount entered, so that whoever made the names cannot lead us anywhere else.
Napi::Value OpenBelow(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "openBelow");
  const int fd = args.Fd(0);
  const std::string path = Path(&args, 1, "path");
  const uint32_t flags = args.Uint32(2, "flags");
  if (!args.ok()) return env.Undefined();
  open_how how{};
  how.flags = flags | O_CLOEXEC | O_NOFOLLOW;
  how.resolve =
      RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  return ToNumber(env, ResultOrErrno(syscall(SYS_openat2, fd, path.c_str(), &how, sizeof how)));
}

// The calls below never follow a link that is the last part of the path.

Napi::Value ListAttributes(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "listAttributes");
  const std::string path = Path(&args, 0, "path");
  const std::span<uint8_t> names = args.Bytes(1, "names");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(llistxattr(
                           path.c_str(), reinterpret_cast<char*>(names.data()), names.size())));
}

Napi::Value GetAttribute(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "getAttribute");
  const std::string path = Path(&args, 0, "path");
  const std::string name = Path(&args, 1, "name");
  const std::span<uint8_t> value = args.Bytes(2, "value");
  if (!args.ok()) return env.Undefined();
  return ToNumber(
      env, ResultOrErrno(lgetxattr(path.c_str(), name.c_str(), value.data(), value.size())));
}

Napi::Value SetAttribute(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "setAttribute");
  const std::string path = Path(&args, 0, "path");
  const std::string name = Path(&args, 1, "name");
  const std::span<uint8_t> value = args.Bytes(2, "value");
  if (!args.ok()) return env.Undefined();
  return ToNumber(
      env, ResultOrErrno(lsetxattr(path.c_str(), name.c_str(), value.data(), value.size(), 0)));
}

Napi::Value RemoveAttribute(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "removeAttribute");
  const std::string path = Path(&args, 0, "path");
  const std::string name = Path(&args, 1, "name");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(lremovexattr(path.c_str(), name.c_str())));
}

Napi::Value MakeNode(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "makeNode");
  const std::string path = Path(&args, 0, "path");
  const uint32_t mode = args.Uint32(1, "mode");
  const uint32_t major = args.Uint32(2, "major");
  const uint32_t minor = args.Uint32(3, "minor");
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(mknod(path.c_str(), mode, makedev(major, minor))));
}

// setTimes(path, accessSeconds, accessNanoseconds, modifiedSeconds, modifiedNanoseconds)
Napi::Value SetTimes(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "setTimes");
  const std::string path = Path(&args, 0, "path");
  timespec times[2] = {};
  for (size_t i = 0; i < 2; i++) {
    times[i].tv_sec = static_cast<time_t>(
        args.Whole(1 + 2 * i, "seconds", -kSafeIntegerMax, kSafeIntegerMax));
    times[i].tv_nsec = static_cast<long>(args.Uint32(2 + 2 * i, "nanoseconds", 999999999));
  }
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(utimensat(AT_FDCWD, path.c_str(), times,
                                               AT_SYMLINK_NOFOLLOW)));
}

// Everything of the file system that holds `fd`. An error may be of any write since it was opened.
Napi::Value SyncFileSystem(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "syncFileSystem");
  const int fd = args.Fd(0);
  if (!args.ok()) return env.Undefined();
  return ToNumber(env, ResultOrErrno(syncfs(fd)));
}

}  // namespace

void DefineTree(Napi::Env env, Napi::Object exports, void* environment) {
  exports.Set("openBelow", Napi::Function::New<OpenBelow>(env, "openBelow", environment));
  exports.Set("listAttributes",
              Napi::Function::New<ListAttributes>(env, "listAttributes", environment));
  exports.Set("getAttribute", Napi::Function::New<GetAttribute>(env, "getAttribute", environment));
  exports.Set("setAttribute", Napi::Function::New<SetAttribute>(env, "setAttribute", environment));
  exports.Set("removeAttribute",
              Napi::Function::New<RemoveAttribute>(env, "removeAttribute", environment));
  exports.Set("makeNode", Napi::Function::New<MakeNode>(env, "makeNode", environment));
  exports.Set("syncFileSystem",
              Napi::Function::New<SyncFileSystem>(env, "syncFileSystem", environment));
  exports.Set("setTimes", Napi::Function::New<SetTimes>(env, "setTimes", environment));
}

}  // namespace ubd
