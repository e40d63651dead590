#include "apart.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "args.h"
#include "failure.h"
#include "ioctl-argument.h"
#include "owned.h"

namespace ubd {

namespace {

// Why a child. A process that serves a block device must not wait for that device: if it is killed while one
// of its threads waits in the kernel for an answer that only the process itself can give, that thread never
// ends, so the descriptors are never closed, so the kernel never learns that nobody will answer. Nothing can
// end such a process. A child with descriptors of its own breaks the circle: when we are killed, ours are
// closed, the kernel fails what the child waits for, and the child ends too.
//
// The child shares our memory (it is made as vfork does it: this thread sleeps until it ends), and makes
// nothing but system calls. It closes what it inherited first of all.

constexpr size_t kStepsMax = 16;
constexpr size_t kStackBytes = size_t{64} * 1024;
constexpr int kNone = -1;

struct Step {
  // open: a path. ioctl: none, but the step whose result is the descriptor, and the argument.
  std::string path;
  int flags = 0;
  int on = kNone;
  uint32_t request = 0;
  IoctlArgument argument;
  // The step whose result goes into the argument's first four bytes.
  int put = kNone;
  int64_t result = -ECANCELED;
};

struct ApartWork {
  napi_async_work work = nullptr;
  napi_deferred deferred = nullptr;
  int keep = -1;
  std::vector<Step> steps;
  std::vector<Napi::ObjectReference> buffers;  // of each step: empty, or the caller's Uint8Array
  Mapping stack;
  int64_t failure = 0;

  // SAFETY: runs in the child, on a stack of its own, in memory that it shares with the sleeping parent:
  // no allocation, no lock, no library state but errno; and it ends by exit_group, past all handlers.
  static int Child(void* data) {
    auto* self = static_cast<ApartWork*>(data);
    const auto keep = static_cast<unsigned int>(self->keep);
    if (self->keep > 0) syscall(SYS_close_range, 0U, keep - 1, 0U);
    syscall(SYS_close_range, self->keep < 0 ? 0U : keep + 1, ~0U, 0U);
    for (Step& step : self->steps) {
      if (step.on == kNone) {
        step.result = ResultOrErrno(
            syscall(SYS_openat, AT_FDCWD, step.path.c_str(), step.flags | O_CLOEXEC, 0));
      } else {
        if (step.put != kNone)
          step.argument.SetFirstWord(static_cast<uint32_t>(self->steps[step.put].result));
        step.result = step.argument.Run(static_cast<int>(self->steps[step.on].result), step.request);
      }
      if (step.result < 0) break;
    }
    syscall(SYS_exit_group, 0);
    return 0;
  }

  static void Execute(napi_env, void* data) {
    auto* self = static_cast<ApartWork*>(data);
    // No handler of ours may run in the child: it inherits this mask.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    uint8_t* top = self->stack.data() + self->stack.length();
    // No exit signal: nobody but us waits for it.
    const pid_t pid = clone(Child, top, CLONE_VM | CLONE_VFORK, self);
    if (pid < 0) self->failure = -errno;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (pid < 0) return;
    while (waitpid(pid, nullptr, __WALL) < 0 && errno == EINTR) {
    }
  }

  // As any work on libuv's pool: it also runs while the environment is taken down, and every status may
  // then be a refusal, which is ignored.
  static void Complete(napi_env env, napi_status, void* data) {
    const std::unique_ptr<ApartWork> self(static_cast<ApartWork*>(data));
    napi_value results = nullptr;
    if (napi_create_array_with_length(env, self->steps.size(), &results) == napi_ok) {
      for (size_t i = 0; i < self->steps.size(); i++) {
        self->GiveBack(env, i);
        const int64_t result = self->failure < 0 ? self->failure : self->steps[i].result;
        napi_value number = nullptr;
        if (napi_create_double(env, static_cast<double>(result), &number) == napi_ok)
          napi_set_element(env, results, static_cast<uint32_t>(i), number);
      }
      napi_resolve_deferred(env, self->deferred, results);
    }
    napi_delete_async_work(env, self->work);
  }

  void GiveBack(napi_env env, size_t i) const {
    if (buffers[i].IsEmpty()) return;
    // SAFETY: the buffer may have been detached or shrunk since: its place and length are asked anew.
    void* bytes = nullptr;
    size_t length = 0;
    if (napi_get_typedarray_info(env, buffers[i].Value(), nullptr, &length, &bytes, nullptr,
                                 nullptr) == napi_ok &&
        bytes != nullptr)
      steps[i].argument.WriteBack({static_cast<uint8_t*>(bytes), length});
  }
};

// apart(keep, path, flags | on, request, argument, put | …): flat, in groups, so that every argument is
// checked as everywhere else. A group that begins with a string has two members, one with a number four.
Napi::Value Apart(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "apart");
  auto work = std::make_unique<ApartWork>();
  work->keep = args.Fd(0, "keep");
  work->steps.reserve(kStepsMax);  // a step's argument is not moved while the list grows
  for (size_t at = 1; at < info.Length() && args.ok();) {
    if (work->steps.size() == kStepsMax) {
      args.OutOfRange("steps", "16 at most");
      break;
    }
    const int earlier = static_cast<int>(work->steps.size());
    Step& step = work->steps.emplace_back();
    Napi::ObjectReference& buffer = work->buffers.emplace_back();
    if (info[at].IsString()) {
      step.path = args.Text(at, "path");
      step.flags = args.Int32(at + 1, "flags");
      at += 2;
      continue;
    }
    step.on = static_cast<int>(args.Whole(at, "on", 0, earlier - 1));
    step.request = args.Uint32(at + 1, "request");
    if (!args.ok() || !step.argument.Read(&args, at + 2, step.request)) break;
    if (step.argument.isBuffer()) buffer = Napi::Persistent(info[at + 2].As<Napi::Object>());
    step.put = static_cast<int>(args.Whole(at + 3, "put", kNone, earlier - 1));
    at += 4;
  }
  if (!args.ok()) return env.Undefined();

  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  napi_value promise = nullptr;
  if (stack != MAP_FAILED) {
    work->stack = Mapping(stack, kStackBytes);
    if (napi_create_promise(env, &work->deferred, &promise) == napi_ok &&
        napi_create_async_work(env, nullptr, Napi::String::New(env, "ubd:apart"),
                               ApartWork::Execute, ApartWork::Complete, work.get(),
                               &work->work) == napi_ok &&
        napi_queue_async_work(env, work->work) == napi_ok) {
      work.release();  // Complete deletes it
      return Napi::Value(env, promise);
    }
  }
  if (work->work != nullptr) napi_delete_async_work(env, work->work);
  ThrowErrno(env, EAGAIN, "clone");
  return env.Undefined();
}

}  // namespace

void DefineApart(Napi::Env env, Napi::Object exports, void* environment) {
  exports.Set("apart", Napi::Function::New<Apart>(env, "apart", environment));
}

}  // namespace ubd
