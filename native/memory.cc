#include "memory.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "args.h"
#include "environment.h"
#include "failure.h"

namespace ubd {

namespace {

// Node 20's largest external ArrayBuffer.
constexpr double kLengthMax = 4294967296.0;

// The huge page of x86-64, and of most others where the page has 4 KiB.
constexpr size_t kHugePage = 2 << 20;

// Wraps a fresh mapping in an ArrayBuffer and takes it into the registry: { address, buffer }.
Napi::Value Register(Napi::Env env, MemoryRegistry* memory, Mapping mapping, size_t length,
                     bool anonymous) {
  // A child process must not share pages that the kernel is about to fill: after a fork,
  // copy-on-write could leave the data of a read in the child's copy. Best effort: without it only
  // such a child suffers.
  madvise(mapping.data(), mapping.length(), MADV_DONTFORK);

  // SAFETY: the buffer is detached before the region is unmapped (unmapMemory, end of the
  // environment).
  Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, mapping.data(), length);
  if (env.IsExceptionPending()) return env.Undefined();

  Napi::Object result = Napi::Object::New(env);
  result.Set("address", Napi::Number::New(env, static_cast<double>(mapping.address())));
  result.Set("buffer", buffer);
  // A strong reference: memory that the kernel may be writing to is not left to the garbage
  // collector.
  memory->Add({std::move(mapping), Napi::Persistent(buffer), anonymous});
  return result;
}

// mapMemory(lengthBytes): { address, buffer }
Napi::Value MapMemory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "mapMemory");
  const auto length = static_cast<size_t>(args.Whole(0, "lengthBytes", 1, kLengthMax));
  if (!args.ok()) return env.Undefined();

  const size_t mapped = RoundUpToPage(length);
  void* address =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) {
    ThrowErrno(env, errno, "mmap");
    return env.Undefined();
  }
  return Register(env, &Environment::Of(info).memory, Mapping(address, mapped), length, true);
}

// mapHugeMemory(lengthBytes): { address, buffer }
Napi::Value MapHugeMemory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "mapHugeMemory");
  const auto length = static_cast<size_t>(args.Whole(0, "lengthBytes", 1, kLengthMax));
  if (args.ok() && length % kHugePage != 0)
    args.OutOfRange("lengthBytes", "a multiple of 2 MiB");
  if (!args.ok()) return env.Undefined();

  // The kernel aligns to pages; so more is mapped than is needed, and the ends go again.
  const size_t mapped = length + kHugePage;
  void* address =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) {
    ThrowErrno(env, errno, "mmap");
    return env.Undefined();
  }
  const auto first = reinterpret_cast<uintptr_t>(address);
  const uintptr_t start = (first + kHugePage - 1) / kHugePage * kHugePage;
  const size_t head = start - first;
  // SAFETY: both ranges are parts of the mapping above that nobody knows of yet.
  if (head > 0) munmap(address, head);
  munmap(reinterpret_cast<void*>(start + length), mapped - head - length);

  Mapping mapping(reinterpret_cast<void*>(start), length);
  madvise(mapping.data(), length, MADV_HUGEPAGE);  // a wish: small pages do as well
  return Register(env, &Environment::Of(info).memory, std::move(mapping), length, true);
}

// mapDevice(fd, lengthBytes, position): { address, buffer } | -errno
Napi::Value MapDevice(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "mapDevice");
  const int fd = args.Fd(0);
  const auto length = static_cast<size_t>(args.Whole(1, "lengthBytes", 1, kLengthMax));
  const auto position = static_cast<off_t>(args.Whole(2, "position", 0, kSafeIntegerMax));
  if (!args.ok()) return env.Undefined();
  // A file that is cut off below a mapping of it kills whoever reads there; a device has no such
  // end.
  struct stat status = {};
  if (fstat(fd, &status) != 0) return Napi::Number::New(env, -errno);
  if (!S_ISCHR(status.st_mode)) return Napi::Number::New(env, -ENODEV);

  const size_t mapped = RoundUpToPage(length);
  void* address = mmap(nullptr, mapped, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, position);
  if (address == MAP_FAILED) return Napi::Number::New(env, -errno);
  return Register(env, &Environment::Of(info).memory, Mapping(address, mapped), length, false);
}

// mapFile(fd, lengthBytes, position): { address, buffer } | -errno
Napi::Value MapFile(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "mapFile");
  const int fd = args.Fd(0);
  const double length = args.Whole(1, "lengthBytes", 1, kLengthMax);
  const double position = args.Whole(2, "position", 0, kSafeIntegerMax - kLengthMax);
  if (!args.ok()) return env.Undefined();
  struct stat status = {};
  if (fstat(fd, &status) != 0) return Napi::Number::New(env, -errno);
  if (!S_ISREG(status.st_mode) || position + length > static_cast<double>(status.st_size))
    return Napi::Number::New(env, -EINVAL);

  const size_t mapped = RoundUpToPage(static_cast<size_t>(length));
  void* address = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                       static_cast<off_t>(position));
  if (address == MAP_FAILED) return Napi::Number::New(env, -errno);
  return Register(env, &Environment::Of(info).memory, Mapping(address, mapped),
                  static_cast<size_t>(length), false);
}

// unmapMemory(address)
Napi::Value UnmapMemory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "unmapMemory");
  const double address = args.Whole(0, "address", 0, kSafeIntegerMax);
  if (!args.ok()) return env.Undefined();

  MemoryRegistry& memory = Environment::Of(info).memory;
  MemoryRegistry::Region region;
  if (!memory.Take(address, &region)) {
    args.OutOfRange("address", "the start of mapped memory of this thread");
    return env.Undefined();
  }
  if (!DetachOwned(region.buffer.Value()) || memory.keep()) region.mapping.Abandon();
  return env.Undefined();
}

// copyMemory(target, source, length)
Napi::Value CopyMemory(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Args args(info, "copyMemory");
  const double target = args.Whole(0, "target", 0, kSafeIntegerMax);
  const double source = args.Whole(1, "source", 0, kSafeIntegerMax);
  const double length = args.Whole(2, "length", 0, kLengthMax);
  if (!args.ok()) return env.Undefined();

  const MemoryRegistry& memory = Environment::Of(info).memory;
  const char* expected = "in memory of mapMemory, as a whole";
  if (!memory.ContainsAnonymous(target, length)) args.OutOfRange("target", expected);
  if (!memory.ContainsAnonymous(source, length)) args.OutOfRange("source", expected);
  if (!args.ok()) return env.Undefined();
  // SAFETY: both ranges lie in mappings of this thread, which nobody else can unmap meanwhile, and
  // which no file stands behind. They may overlap: hence memmove.
  memmove(reinterpret_cast<void*>(static_cast<uintptr_t>(target)),
          reinterpret_cast<const void*>(static_cast<uintptr_t>(source)),
          static_cast<size_t>(length));
  return env.Undefined();
}

}  // namespace

bool DetachOwned(Napi::ArrayBuffer buffer) {
  // SAFETY: a buffer that is detached already was moved to another one (ArrayBuffer.transfer),
  // which still points into the mapping: then the caller must leave the pages where they are.
  if (buffer.IsDetached()) return false;
  buffer.Detach();
  return buffer.IsDetached();
}

void MemoryRegistry::Add(Region region) {
  const uintptr_t address = region.mapping.address();
  regions_.insert_or_assign(address, std::move(region));
}

const MemoryRegistry::Region* MemoryRegistry::Find(double address, double length) const {
  if (!IsWhole(address, 0, kSafeIntegerMax) || !IsWhole(length, 0, kSafeIntegerMax)) return nullptr;
  const auto start = static_cast<uintptr_t>(address);
  const auto bytes = static_cast<uintptr_t>(length);
  if (last_ != nullptr) {
    const uintptr_t offset = start - last_->mapping.address();
    const size_t room = last_->mapping.length();
    // Its end may be the start of another one.
    if (offset < room && bytes <= room - offset) return last_;
  }
  auto next = regions_.upper_bound(start);
  if (next == regions_.begin()) return nullptr;
  const Region& region = std::prev(next)->second;
  const uintptr_t offset = start - region.mapping.address();
  const size_t room = region.mapping.length();
  if (offset > room || bytes > room - offset) return nullptr;
  last_ = &region;
  return last_;
}

bool MemoryRegistry::Contains(double address, double length) const {
  return Find(address, length) != nullptr;
}

bool MemoryRegistry::Covers(double address, double length) const {
  double left = length;
  for (double at = address;;) {
    const Region* region = Find(at, 0);
    if (region == nullptr || !IsWhole(left, 0, kSafeIntegerMax)) return false;
    const uintptr_t offset = static_cast<uintptr_t>(at) - region->mapping.address();
    const auto room = static_cast<double>(region->mapping.length() - offset);
    if (left <= room) return true;
    if (room == 0) return false;  // its end, and nothing of ours follows
    at += room;
    left -= room;
  }
}

bool MemoryRegistry::ContainsAnonymous(double address, double length) const {
  const Region* region = Find(address, length);
  return region != nullptr && region->anonymous;
}

bool MemoryRegistry::Take(double address, Region* region) {
  auto found = regions_.find(static_cast<uintptr_t>(address));
  if (found == regions_.end()) return false;
  last_ = nullptr;
  *region = std::move(found->second);
  regions_.erase(found);
  return true;
}

void MemoryRegistry::Clear() {
  if (keep_) {
    for (auto& [address, region] : regions_) region.mapping.Abandon();
  }
  last_ = nullptr;
  regions_.clear();
}

void DefineMemory(Napi::Env env, Napi::Object exports, void* environment) {
  exports.Set("mapMemory", Napi::Function::New<MapMemory>(env, "mapMemory", environment));
  exports.Set("mapHugeMemory",
              Napi::Function::New<MapHugeMemory>(env, "mapHugeMemory", environment));
  exports.Set("mapDevice", Napi::Function::New<MapDevice>(env, "mapDevice", environment));
  exports.Set("mapFile", Napi::Function::New<MapFile>(env, "mapFile", environment));
  exports.Set("unmapMemory", Napi::Function::New<UnmapMemory>(env, "unmapMemory", environment));
  exports.Set("copyMemory", Napi::Function::New<CopyMemory>(env, "copyMemory", environment));
}

}  // namespace ubd
