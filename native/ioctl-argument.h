// The argument of an ioctl: checked, and kept where the kernel can do no harm with it.
#pragma once

#include <linux/ioctl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <string>

#include "args.h"
#include "failure.h"
#include "owned.h"

namespace ubd {

// The argument of an ioctl, of which the kernel alone knows how much it reads and writes.
//
// Most requests encode the size of their structure (_IOC_SIZE), and the buffer must have that size. Older
// ones (LOOP_SET_STATUS64 and its kin) encode nothing, and some go beyond what they encode (FIEMAP's extents).
// So the kernel never works on the JavaScript buffer but on a copy in pages of its own, with at least 16 KiB
// (the largest size that a request can encode) and a guard page behind it: whatever it writes too far is cut
// off, or ends in EFAULT; it never lands in memory of ours. What this cannot guard is a structure that holds
// pointers itself (SG_IO): no such request is used here.
class IoctlArgument {
 public:
  static constexpr size_t kScratchMin = size_t{1} << _IOC_SIZEBITS;
  // Nothing is ever mapped below this address (vm.mmap_min_addr), and the highest ones belong to the kernel:
  // a number in between these limits is an integer even for a request that takes a pointer, which then
  // answers EFAULT.
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
    void* address = mmap(nullptr, usable + PageSize(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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

  // Puts a number into the first four bytes: a descriptor that was not known when the argument was made.
  void SetFirstWord(uint32_t value) const {
    if (length_ >= sizeof value) memcpy(scratch_.data(), &value, sizeof value);
  }

  // Gives what the kernel wrote back to the caller's buffer, which may have become shorter meanwhile.
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

}  // namespace ubd
