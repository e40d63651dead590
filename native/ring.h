// io_uring: setup, enter, register, close. Raw system calls and the kernel's own header; no
// library.
//
// The rings are mapped and handed to TypeScript as ArrayBuffers: it writes submissions and reads
// completions itself. So what is guarded here is the calls, not the submissions: an SQE is a
// pointer for the kernel, and a wrong address in one is as dangerous as in C. src/uring takes
// addresses from mapped memory only.
//
// A ring that goes away first comes to rest (everything under way is cancelled and waited for),
// because requests outlive the descriptor: the kernel would go on writing to memory that is about
// to be unmapped.
#pragma once

#include <linux/io_uring.h>
#include <napi.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "owned.h"

namespace ubd {

class MemoryRegistry;

class Ring {
 public:
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring();

  // Null with errno set if the kernel refuses.
  static std::unique_ptr<Ring> Make(uint32_t entries, uint32_t flags, uint32_t cqEntries);

  int fd() const { return fd_.get(); }
  const io_uring_params& params() const { return params_; }

  // Wraps the maps in ArrayBuffers; `result` is the RingMaps of src/native/binding.ts.
  void Expose(Napi::Env env, Napi::Object result);

  // Whether sizes and counters in the maps can be right. Waiting with wrong ones hangs in the
  // kernel.
  bool LooksSane() const;

  // io_uring_enter, without signal mask or timeout: what was submitted, or -errno.
  int64_t Enter(uint32_t toSubmit, uint32_t minComplete, uint32_t flags) const;

  // Cancels all that is under way and waits for it. False if something would not end in time.
  bool ComeToRest(int64_t milliseconds);

  // Detaches the ArrayBuffers. A mapping that cannot be detached stays for the process's life.
  void Detach();

 private:
  // Distance of submissions: twice as large where commands carry more than 16 bytes (SQE128).
  size_t SqeBytes() const {
    return sizeof(io_uring_sqe) * ((params_.flags & IORING_SETUP_SQE128) != 0 ? 2 : 1);
  }
  // Enters by a number in this thread's own table from now on, if the kernel gives one: looking a
  // descriptor up takes a reference, since other threads may close it meanwhile.
  void EnterByNumber();
  volatile uint32_t* Word(uint32_t offset) const;
  bool Consume(uint64_t mark);

  io_uring_params params_ = {};
  // In the table of rings of the thread that made it, which alone uses it; -1: none.
  int number_ = -1;
  // Order of teardown, from the last to the first: buffers, munmap(sqes), munmap(rings), close(fd).
  Descriptor fd_;
  Mapping rings_;
  Mapping sqes_;
  Napi::Reference<Napi::ArrayBuffer> ringsBuffer_;
  Napi::Reference<Napi::ArrayBuffer> sqesBuffer_;
};

// The rings of one environment. There are very few, so a list is the fastest index.
class Rings {
 public:
  void Add(std::unique_ptr<Ring> ring) { rings_.push_back(std::move(ring)); }
  // Null if no ring of this environment has the descriptor.
  const Ring* Find(int fd) const;
  std::unique_ptr<Ring> Take(int fd);
  // Closes all; tells `memory` if one did not come to rest.
  void Clear(MemoryRegistry* memory);

 private:
  std::vector<std::unique_ptr<Ring>> rings_;
};

void DefineRing(Napi::Env env, Napi::Object exports, void* environment);

}  // namespace ubd
