#include "ring.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "args.h"
#include "environment.h"
#include "failure.h"

namespace ubd {

namespace {

constexpr uint32_t kEntriesMax = 32768;    // IORING_MAX_ENTRIES
constexpr uint32_t kCqEntriesMax = 65536;  // IORING_MAX_CQ_ENTRIES

// The set-up flags for which sizes and places of the rings are known here. Refused are those with
// larger completions (CQE32), with addresses or descriptors of the caller (NO_MMAP, ATTACH_WQ,
// REGISTERED_FD_ONLY), without index array (NO_SQARRAY), and polling ones, which we have no use
// for.
constexpr uint32_t kSetupFlags = IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL |
                                 IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
                                 IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                 IORING_SETUP_SQE128;

// EXT_ARG would need an argument, and REGISTERED_RING is Ring's own.
constexpr uint32_t kNoIowait = 1U << 7;  // IORING_ENTER_NO_IOWAIT; not in older headers
constexpr uint32_t kEnterFlags =
    IORING_ENTER_GETEVENTS | IORING_ENTER_SQ_WAKEUP | IORING_ENTER_SQ_WAIT | kNoIowait;

constexpr uint32_t kRestMillisecondsMax = 5000;

int64_t Setup(uint32_t entries, io_uring_params* params) {
  return syscall(SYS_io_uring_setup, entries, params);
}

int64_t Register(int fd, uint32_t opcode, void* argument, uint32_t count) {
  return ResultOrErrno(syscall(SYS_io_uring_register, fd, opcode, argument, count));
}

Mapping MapRing(int fd, size_t length, off_t offset) {
  void* address =
      mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
  if (address == MAP_FAILED) return Mapping();
  // A child process must not keep the ring, and what it reads from, open until it becomes another
  // program.
  madvise(address, length, MADV_DONTFORK);
  return Mapping(address, RoundUpToPage(length));
}

// Whether `argument` is long enough for what the kernel reads and writes for `opcode`, and whether
// the addresses in it lie in mapped memory. False for every opcode that is not listed.
bool ArgumentFits(uint32_t opcode, std::span<const uint8_t> argument, uint32_t count,
                  const MemoryRegistry& memory) {
  const auto holds = [&](size_t header, size_t each) {
    return argument.size() >= header && count <= (argument.size() - header) / each;
  };
  const auto inMemory = [&](uint64_t address, uint64_t length) {
    return memory.Contains(static_cast<double>(address), static_cast<double>(length));
  };
  switch (opcode) {
    case IORING_REGISTER_PROBE:
      return holds(sizeof(io_uring_probe), sizeof(io_uring_probe_op));
    case IORING_REGISTER_PBUF_RING: {
      if (!holds(0, sizeof(io_uring_buf_reg)) || count != 1) return false;
      io_uring_buf_reg registration;
      memcpy(&registration, argument.data(), sizeof registration);
      // `pad` holds flags since Linux 6.4; bit 0 would let the kernel choose the address.
      if ((registration.pad & 1) != 0) return false;
      return inMemory(registration.ring_addr,
                      uint64_t{registration.ring_entries} * sizeof(io_uring_buf));
    }
    case IORING_UNREGISTER_PBUF_RING:
      return holds(0, sizeof(io_uring_buf_reg)) && count == 1;
    case IORING_REGISTER_FILES:
      return holds(0, sizeof(int32_t));
    case IORING_REGISTER_FILES_UPDATE: {
      io_uring_files_update update;
      if (argument.size() < sizeof update) return false;
      memcpy(&update, argument.data(), sizeof update);
      return inMemory(update.fds, uint64_t{count} * sizeof(int32_t));
    }
    case IORING_REGISTER_BUFFERS: {
      if (!holds(0, sizeof(iovec))) return false;
      for (uint32_t i = 0; i < count; i++) {
        iovec vector;
        memcpy(&vector, argument.data() + i * sizeof vector, sizeof vector);
        if (!inMemory(reinterpret_cast<uintptr_t>(vector.iov_base), vector.iov_len)) return false;
      }
      return true;
    }
    case IORING_REGISTER_BUFFERS2: {
      // Empty places alone: `data` would be addresses.
      if (!holds(0, 1) || argument.size() != sizeof(io_uring_rsrc_register)) return false;
      io_uring_rsrc_register registration;
      memcpy(&registration, argument.data(), sizeof registration);
      return count == sizeof registration && registration.flags == IORING_RSRC_REGISTER_SPARSE &&
             registration.data == 0 && registration.tags == 0;
    }
    case IORING_REGISTER_IOWQ_MAX_WORKERS:
      return holds(0, sizeof(uint32_t)) && count == 2;
    case IORING_REGISTER_SYNC_CANCEL:
      return holds(0, sizeof(io_uring_sync_cancel_reg)) && count == 1;
    case IORING_UNREGISTER_FILES:
    case IORING_UNREGISTER_BUFFERS:
      return argument.empty() && count == 0;
    default:
      return false;
  }
}

// Of a registration: the kernel takes at most 16384 buffers.
constexpr size_t kArgumentBytesMax = size_t{1} << 20;

// ringSetup(entries, flags, cqEntries): RingMaps
Napi::Value RingSetup(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "ringSetup");
  const uint32_t entries = args.Uint32(0, "entries", kEntriesMax);
  const uint32_t flags = args.Uint32(1, "flags");
  const uint32_t cqEntries = args.Uint32(2, "cqEntries", kCqEntriesMax);
  if ((flags & ~kSetupFlags) != 0) args.OutOfRange("flags", "without flags that change the rings");
  if (!args.ok()) return env.Undefined();

  std::unique_ptr<Ring> ring = Ring::Make(entries, flags, cqEntries);
  if (ring == nullptr) {
    ThrowErrno(env, errno, "io_uring_setup");
    return env.Undefined();
  }
  Napi::Object result = Napi::Object::New(env);
  ring->Expose(env, result);
  if (env.IsExceptionPending()) {
    ring->Detach();
    return env.Undefined();
  }
  Environment::Of(info).rings.Add(std::move(ring));
  return result;
}

// enterCall(): ArrayBuffer
Napi::Value GetEnterCall(const Napi::CallbackInfo& info) {
  // SAFETY: the environment outlives all JavaScript that can reach the buffer.
  return Napi::ArrayBuffer::New(info.Env(), &Environment::Of(info).enterCall, sizeof(EnterCall));
}

// ringEnter(). Without the C++ wrapper, which would read arguments that there are none of.
napi_value RingEnter(napi_env env, napi_callback_info info) {
  void* data = nullptr;
  napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data);
  auto* environment = static_cast<Environment*>(data);
  const EnterCall call = environment->enterCall;
  const Ring* ring = environment->rings.Find(call.fd);
  if (ring == nullptr) {
    environment->enterCall.result = -EBADF;
  } else if ((call.flags & ~kEnterFlags) != 0) {
    napi_throw_range_error(env, nullptr, "ringEnter: flags without those that take arguments");
  } else if (!ring->LooksSane()) {
    napi_throw_range_error(env, nullptr, "ringEnter: the counters of the ring were overwritten");
  } else {
    environment->enterCall.result = static_cast<int32_t>(
        ring->Enter(call.toSubmit, call.minComplete, call.flags));
  }
  return nullptr;
}

// ringRegister(fd, opcode, argument, count): result | -errno
Napi::Value RingRegister(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "ringRegister");
  const int fd = args.Fd(0);
  const uint32_t opcode = args.Uint32(1, "opcode");
  const std::span<uint8_t> argument =
      args.IsNull(2) ? std::span<uint8_t>() : args.Bytes(2, "argument");
  const uint32_t count = args.Uint32(3, "count");
  if (!args.ok()) return env.Undefined();

  if (argument.size() > kArgumentBytesMax) {
    args.OutOfRange("argument", "at most 1 MiB long");
    return env.Undefined();
  }
  // What is checked is what the kernel gets: another thread may write to a shared buffer meanwhile.
  std::vector<uint8_t> checked(argument.begin(), argument.end());
  Environment& environment = Environment::Of(info);
  if (!ArgumentFits(opcode, checked, count, environment.memory)) {
    args.OutOfRange("argument", "as long as a known opcode needs, its addresses in mapped memory");
    return env.Undefined();
  }
  if (environment.rings.Find(fd) == nullptr) return ToNumber(env, -EBADF);
  // SAFETY: the kernel reads and writes no more than ArgumentFits checked, and keeps no pointer to
  // it.
  const int64_t result =
      Register(fd, opcode, checked.empty() ? nullptr : checked.data(), count);
  std::copy(checked.begin(), checked.end(), argument.begin());
  return ToNumber(env, result);
}

// ringClose(fd, patienceMilliseconds = kRestMillisecondsMax)
Napi::Value RingClose(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "ringClose");
  const int fd = args.Fd(0);
  const uint32_t patience = info.Length() > 1
                                ? args.Uint32(1, "patienceMilliseconds", kRestMillisecondsMax)
                                : kRestMillisecondsMax;
  if (!args.ok()) return env.Undefined();
  Environment& environment = Environment::Of(info);
  std::unique_ptr<Ring> ring = environment.rings.Take(fd);
  if (ring == nullptr) {
    args.OutOfRange("fd", "an open ring of this thread");
    return env.Undefined();
  }
  if (patience == 0 || !ring->ComeToRest(patience)) environment.memory.KeepForever();
  ring->Detach();
  return env.Undefined();
}

}  // namespace

std::unique_ptr<Ring> Ring::Make(uint32_t entries, uint32_t flags, uint32_t cqEntries) {
  auto ring = std::make_unique<Ring>();
  io_uring_params& params = ring->params_;
  params.flags = flags;
  if (cqEntries > 0) {
    params.flags |= IORING_SETUP_CQSIZE;
    params.cq_entries = cqEntries;
  }
  const int64_t fd = Setup(entries, &params);
  if (fd < 0) return nullptr;
  ring->fd_ = Descriptor(static_cast<int>(fd));

  // One mapping for both rings (IORING_FEAT_SINGLE_MMAP) is as old as Linux 5.4.
  if ((params.features & IORING_FEAT_SINGLE_MMAP) == 0) {
    errno = ENOSYS;
    return nullptr;
  }
  const size_t sqEnd = params.sq_off.array + size_t{params.sq_entries} * sizeof(uint32_t);
  const size_t cqEnd = params.cq_off.cqes + size_t{params.cq_entries} * sizeof(io_uring_cqe);
  ring->rings_ = MapRing(ring->fd(), std::max(sqEnd, cqEnd), IORING_OFF_SQ_RING);
  ring->sqes_ = MapRing(ring->fd(), params.sq_entries * ring->SqeBytes(), IORING_OFF_SQES);
  if (ring->rings_.data() == nullptr || ring->sqes_.data() == nullptr) {
    errno = ENOMEM;
    return nullptr;
  }
  ring->EnterByNumber();
  return ring;
}

Ring::~Ring() {
  // The table holds the ring open, too.
  io_uring_rsrc_update place = {};
  place.offset = static_cast<uint32_t>(number_);
  if (number_ >= 0) Register(fd(), IORING_UNREGISTER_RING_FDS, &place, 1);
}

void Ring::EnterByNumber() {
  io_uring_rsrc_update place = {};
  place.offset = UINT32_MAX;  // any
  place.data = static_cast<uint32_t>(fd());
  if (Register(fd(), IORING_REGISTER_RING_FDS, &place, 1) == 1)
    number_ = static_cast<int>(place.offset);
}

int64_t Ring::Enter(uint32_t toSubmit, uint32_t minComplete, uint32_t flags) const {
  const bool numbered = number_ >= 0;
  if (numbered) flags |= IORING_ENTER_REGISTERED_RING;
  return ResultOrErrno(syscall(SYS_io_uring_enter, numbered ? number_ : fd(), toSubmit, minComplete,
                               flags, nullptr, 0));
}

void Ring::Expose(Napi::Env env, Napi::Object result) {
  // SAFETY: both are detached before they are unmapped (ringClose, end of the environment).
  Napi::ArrayBuffer rings = Napi::ArrayBuffer::New(env, rings_.data(), rings_.length());
  if (env.IsExceptionPending()) return;
  ringsBuffer_ = Napi::Persistent(rings);
  Napi::ArrayBuffer sqes = Napi::ArrayBuffer::New(env, sqes_.data(), sqes_.length());
  if (env.IsExceptionPending()) return;
  sqesBuffer_ = Napi::Persistent(sqes);

  const auto number = [&](uint32_t value) { return Napi::Number::New(env, value); };
  result.Set("fd", Napi::Number::New(env, fd()));
  result.Set("features", number(params_.features));
  result.Set("sqEntries", number(params_.sq_entries));
  result.Set("cqEntries", number(params_.cq_entries));
  result.Set("rings", rings);
  result.Set("sqes", sqes);
  Napi::Object offsets = Napi::Object::New(env);
  offsets.Set("sqHead", number(params_.sq_off.head));
  offsets.Set("sqTail", number(params_.sq_off.tail));
  offsets.Set("sqMask", number(params_.sq_off.ring_mask));
  offsets.Set("sqFlags", number(params_.sq_off.flags));
  offsets.Set("sqDropped", number(params_.sq_off.dropped));
  offsets.Set("sqArray", number(params_.sq_off.array));
  offsets.Set("cqHead", number(params_.cq_off.head));
  offsets.Set("cqTail", number(params_.cq_off.tail));
  offsets.Set("cqMask", number(params_.cq_off.ring_mask));
  offsets.Set("cqOverflow", number(params_.cq_off.overflow));
  offsets.Set("cqes", number(params_.cq_off.cqes));
  result.Set("offsets", offsets);
}

volatile uint32_t* Ring::Word(uint32_t offset) const {
  return reinterpret_cast<volatile uint32_t*>(rings_.data() + offset);
}

// Drops all completions; true if the one with user_data `mark` was among them.
bool Ring::Consume(uint64_t mark) {
  bool found = false;
  const uint32_t tail = *Word(params_.cq_off.tail);
  std::atomic_thread_fence(std::memory_order_acquire);
  uint32_t head = *Word(params_.cq_off.head);
  // SAFETY: masked by our own copy of the size, whatever TypeScript wrote into the ring; and no
  // more rounds than there are entries.
  const uint32_t mask = params_.cq_entries - 1;
  const auto* cqes = reinterpret_cast<const io_uring_cqe*>(rings_.data() + params_.cq_off.cqes);
  for (uint32_t i = 0; head != tail && i < params_.cq_entries; i++, head++)
    if (cqes[head & mask].user_data == mark) found = true;
  std::atomic_thread_fence(std::memory_order_release);
  *Word(params_.cq_off.head) = tail;
  return found;
}

bool Ring::LooksSane() const {
  const uint32_t sqEntries = params_.sq_entries;
  const uint32_t cqEntries = params_.cq_entries;
  return *Word(params_.sq_off.ring_mask) == sqEntries - 1 &&
         *Word(params_.sq_off.ring_entries) == sqEntries &&
         *Word(params_.cq_off.ring_mask) == cqEntries - 1 &&
         *Word(params_.cq_off.ring_entries) == cqEntries &&
         *Word(params_.sq_off.tail) - *Word(params_.sq_off.head) <= sqEntries &&
         *Word(params_.cq_off.tail) - *Word(params_.cq_off.head) <= cqEntries;
}

bool Ring::ComeToRest(int64_t milliseconds) {
  // TypeScript's user_data never has its upper half set, see src/uring/ring.ts.
  constexpr uint64_t kMark = ~uint64_t{0};
  if (!LooksSane()) return false;

  // Submissions that the kernel has not seen are dropped: one NOP takes their place that waits for
  // all before it (IOSQE_IO_DRAIN). Its completion says that nothing is under way any more.
  const uint32_t head = *Word(params_.sq_off.head);
  const uint32_t index = head & (params_.sq_entries - 1);
  io_uring_sqe nop = {};
  nop.opcode = IORING_OP_NOP;
  nop.flags = IOSQE_IO_DRAIN;
  nop.user_data = kMark;
  memcpy(sqes_.data() + index * SqeBytes(), &nop, sizeof nop);
  *Word(params_.sq_off.array + index * static_cast<uint32_t>(sizeof(uint32_t))) = index;
  std::atomic_thread_fence(std::memory_order_release);
  *Word(params_.sq_off.tail) = head + 1;

  io_uring_sync_cancel_reg cancel = {};
  cancel.fd = -1;
  cancel.flags = IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY;
  cancel.timeout.tv_sec = 1;
  Register(fd(), IORING_REGISTER_SYNC_CANCEL, &cancel, 1);

  // Nearly always one of the first rounds, which do not sleep, is the last. The wait is ours, not
  // the kernel's: should the counters be wrong after all, a wait for completions in there would
  // never end, not even by SIGKILL (seen on 6.18).
  bool submitted = false;
  for (int64_t waited = 0; waited <= milliseconds; waited++) {
    const int64_t result = Enter(submitted ? 0 : 1, 0, IORING_ENTER_GETEVENTS);
    if (result == 1) submitted = true;
    if (Consume(kMark)) return true;
    if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY) return false;
    const timespec millisecond = {0, 1000000};
    if (waited >= 4) nanosleep(&millisecond, nullptr);
  }
  return false;
}

void Ring::Detach() {
  if (!ringsBuffer_.IsEmpty() && !DetachOwned(ringsBuffer_.Value())) rings_.Abandon();
  if (!sqesBuffer_.IsEmpty() && !DetachOwned(sqesBuffer_.Value())) sqes_.Abandon();
}

const Ring* Rings::Find(int fd) const {
  for (const auto& ring : rings_)
    if (ring->fd() == fd) return ring.get();
  return nullptr;
}

std::unique_ptr<Ring> Rings::Take(int fd) {
  for (auto ring = rings_.begin(); ring != rings_.end(); ++ring) {
    if ((*ring)->fd() != fd) continue;
    std::unique_ptr<Ring> taken = std::move(*ring);
    rings_.erase(ring);
    return taken;
  }
  return nullptr;
}

void Rings::Clear(MemoryRegistry* memory) {
  for (const auto& ring : rings_)
    if (!ring->ComeToRest(kRestMillisecondsMax)) memory->KeepForever();
  rings_.clear();
}

void DefineRing(Napi::Env env, Napi::Object exports, void* environment) {
  exports.Set("ringSetup", Napi::Function::New<RingSetup>(env, "ringSetup", environment));
  exports.Set("enterCall", Napi::Function::New<GetEnterCall>(env, "enterCall", environment));
  exports.Set("ringEnter", NewFunction(env, "ringEnter", RingEnter, environment));
  exports.Set("ringRegister", Napi::Function::New<RingRegister>(env, "ringRegister", environment));
  exports.Set("ringClose", Napi::Function::New<RingClose>(env, "ringClose", environment));
}

}  // namespace ubd
