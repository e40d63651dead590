#include "calls.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "args.h"
#include "environment.h"
#include "failure.h"

namespace ubd {

namespace {

// One record; src/native/binding.ts has the table.
struct Call {
  int32_t which;
  int32_t fd;
  double address;
  double length;
  double position;
  int32_t result;
  int32_t zero;
};
static_assert(sizeof(Call) == 40 && alignof(Call) == 8);

enum Which : int32_t {
  kPread = 0,
  kPwrite = 1,
  kRead = 2,
  kWrite = 3,
  kFallocate = 4,
  kPwriteDurable = 5,
  kReadNext = 6,
  kPreadCached = 7,
  kSend = 8,
  kCopy = 9,
};

// What the kernel moves at most in one call (MAX_RW_COUNT); it cuts longer ones to this by itself.
constexpr double kTransferMax = 0x7ffff000;

int64_t RunOnce(const Call& call, void* address, size_t length, off_t position) {
  switch (call.which) {
    case kPread:
      return pread(call.fd, address, length, position);
    case kPwrite:
      return pwrite(call.fd, address, length, position);
    case kRead:
    case kReadNext:
      return read(call.fd, address, length);
    case kWrite:
      return write(call.fd, address, length);
    case kFallocate:
      return fallocate(call.fd, static_cast<int>(call.address), position,
                       static_cast<off_t>(call.length));
    case kPwriteDurable: {
      const iovec vector = {address, length};
      return pwritev2(call.fd, &vector, 1, position, RWF_DSYNC);
    }
    case kPreadCached: {
      const iovec vector = {address, length};
      return preadv2(call.fd, &vector, 1, position, RWF_NOWAIT);
    }
  }
  errno = EINVAL;
  return -1;
}

// The most pieces of a message (UIO_MAXIOV of the kernel).
constexpr size_t kVectorsMax = 1024;

// Sends pieces of memory, as much as goes at once. `vectors` lies in mapped memory.
int64_t Send(const MemoryRegistry& memory, int fd, iovec* vectors, size_t count) {
  if (count > kVectorsMax) return -EINVAL;
  for (size_t i = 0; i < count; i++) {
    // SAFETY: nobody else changes the list between this check and the call: a message is sent from
    // the thread that owns the memory.
    const auto address = static_cast<double>(reinterpret_cast<uintptr_t>(vectors[i].iov_base));
    // Pieces of data that happen to lie side by side are one vector, whosever memory they are in.
    if (!memory.Covers(address, static_cast<double>(vectors[i].iov_len))) return -EFAULT;
  }
  msghdr message = {};
  message.msg_iov = vectors;
  message.msg_iovlen = count;
  return ResultOrErrno(sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
}

// Memory, by an address that may be anything: to be looked up before it is touched.
char* At(double address) {
  return reinterpret_cast<char*>(
      IsWhole(address, 0, kSafeIntegerMax) ? static_cast<uintptr_t>(address) : 0);
}

constexpr size_t kLineBytes = 64;

// Copies ranges that do not overlap, and asks for the lines of what is copied next meanwhile:
// blocks of a cache lie anywhere, in lines that no processor's cache has, and waiting for them is
// most of a copy. (Asking for all of them first costs more than it saves.)
void CopyAhead(char* target, const char* source, size_t length, const char* next) {
  const size_t lines = length - length % kLineBytes;
  for (size_t at = 0; at < lines; at += kLineBytes) {
    // SAFETY: a prefetch touches nothing: it may be of any address.
    __builtin_prefetch(next + at);
    memcpy(target + at, source + at, kLineBytes);
  }
  memcpy(target + lines, source + lines, length - lines);
}

// No system call: `position` is an address, too, that of the source. `next`: the record behind it,
// or null.
int32_t Copy(const MemoryRegistry& memory, const Call& call, const Call* next) {
  if (!IsWhole(call.length, 0, kTransferMax)) return -EINVAL;
  if (!memory.ContainsAnonymous(call.address, call.length)) return -EFAULT;
  if (!memory.ContainsAnonymous(call.position, call.length)) return -EFAULT;
  char* target = At(call.address);
  const char* source = At(call.position);
  const auto length = static_cast<size_t>(call.length);
  // SAFETY: both ranges lie in mappings of this thread, which nobody else can unmap meanwhile, and
  // which no file stands behind.
  const bool apart = target + length <= source || source + length <= target;
  if (apart && next != nullptr && next->which == kCopy)
    CopyAhead(target, source, length, At(next->position));
  else
    memmove(target, source, length);
  return static_cast<int32_t>(call.length);
}

int32_t Run(const MemoryRegistry& memory, const Call& call) {
  if (call.which < kPread || call.which > kSend) return -EINVAL;
  if (!IsWhole(call.position, 0, kSafeIntegerMax)) return -EINVAL;

  void* address = nullptr;
  size_t length = 0;
  if (call.which == kFallocate) {
    if (!IsWhole(call.address, 0, INT32_MAX) || !IsWhole(call.length, 0, kSafeIntegerMax))
      return -EINVAL;
  } else {
    if (!IsWhole(call.length, 0, kTransferMax)) return -EINVAL;
    if (!memory.Contains(call.address, call.length)) return -EFAULT;
    // SAFETY: the whole range lies in one mapping of this thread, which nobody else can unmap
    // meanwhile.
    address = reinterpret_cast<void*>(static_cast<uintptr_t>(call.address));
    length = static_cast<size_t>(call.length);
  }

  int64_t result = 0;
  if (call.which == kSend) {
    const auto start = static_cast<uintptr_t>(call.address);
    if (start % alignof(iovec) != 0 || length % sizeof(iovec) != 0) return -EINVAL;
    do {
      result = Send(memory, call.fd, static_cast<iovec*>(address), length / sizeof(iovec));
    } while (result == -EINTR);
    return static_cast<int32_t>(result);
  }
  do {
    result = ResultOrErrno(RunOnce(call, address, length, static_cast<off_t>(call.position)));
  } while (result == -EINTR);
  return static_cast<int32_t>(result);
}

// runCalls(calls, count)
napi_value RunCalls(napi_env env, napi_callback_info info) {
  napi_value arguments[2] = {};
  size_t argumentCount = 2;
  void* environment = nullptr;
  napi_get_cb_info(env, info, &argumentCount, arguments, nullptr, &environment);
  void* data = nullptr;
  size_t length = 0;
  if (napi_get_arraybuffer_info(env, arguments[0], &data, &length) != napi_ok) {
    napi_throw_type_error(env, nullptr, "runCalls: calls must be an ArrayBuffer");
    return nullptr;
  }
  double count = 0;
  if (napi_get_value_double(env, arguments[1], &count) != napi_ok) {
    napi_throw_type_error(env, nullptr, "runCalls: count must be a number");
    return nullptr;
  }
  if (!IsWhole(count, 0, static_cast<double>(length / sizeof(Call)))) {
    napi_throw_range_error(env, nullptr,
                           "runCalls: count must be at most the whole records in the buffer");
    return nullptr;
  }
  // SAFETY: `count` records lie in the buffer, which nothing can detach or shrink before we return.
  // A call may write into the records themselves (they can be mapped memory): each is copied before
  // it is checked.
  Call* calls = static_cast<Call*>(data);
  const MemoryRegistry& memory = static_cast<Environment*>(environment)->memory;
  for (size_t i = 0; i < static_cast<size_t>(count); i++) {
    const Call call = calls[i];
    if (call.which == kReadNext && i > 0 && calls[i - 1].result <= 0)
      calls[i].result = calls[i - 1].result;
    else if (call.which == kCopy)
      calls[i].result = Copy(memory, call, i + 1 < count ? &calls[i + 1] : nullptr);
    else
      calls[i].result = Run(memory, call);
  }
  return nullptr;
}

}  // namespace

void DefineCalls(Napi::Env env, Napi::Object exports, void* environment) {
  exports.Set("runCalls", NewFunction(env, "runCalls", RunCalls, environment));
}

}  // namespace ubd
