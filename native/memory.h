// Mapped memory: page-aligned, anonymous, outside of the JavaScript heap, for I/O.
//
// The registry knows every mapping of one environment (thread), so that an address that comes back
// from TypeScript can be checked. An environment's memory is its own: another thread's addresses
// are refused, since that thread may end at any moment.
#pragma once

#include <napi.h>

#include <cstdint>
#include <map>

#include "owned.h"

namespace ubd {

// Detaches a buffer over a mapping of ours. False if that cannot be: the mapping must stay then.
bool DetachOwned(Napi::ArrayBuffer buffer);

class MemoryRegistry {
 public:
  struct Region {
    // `mapping` is declared first: it goes last, after the reference to the buffer over it.
    Mapping mapping;
    Napi::Reference<Napi::ArrayBuffer> buffer;
    // Nothing but ours: it can be read and written without a signal, whatever becomes of any file.
    bool anonymous = false;
  };

  void Add(Region region);

  // Whether the whole range lies in one mapping. Any double may be asked about.
  bool Contains(double address, double length) const;
  // Whether it lies in one or several, side by side, as the kernel likes to place them.
  bool Covers(double address, double length) const;
  // Whether it lies in one, and that is anonymous memory: we may touch it ourselves.
  bool ContainsAnonymous(double address, double length) const;

  // Takes the region that starts at `address` out; false if none does.
  bool Take(double address, Region* region);

  // An operation of a ring could not be brought to an end and may still write: from now on nothing
  // is unmapped any more, since the kernel would write into whatever is mapped there next.
  void KeepForever() { keep_ = true; }
  bool keep() const { return keep_; }

  // Gives all back: the environment ends.
  void Clear();

 private:
  // The region that the whole range lies in, or null.
  const Region* Find(double address, double length) const;

  std::map<uintptr_t, Region> regions_;
  // The region found last, which is the one of the next call, too, nearly always; or null.
  mutable const Region* last_ = nullptr;
  bool keep_ = false;
};

void DefineMemory(Napi::Env env, Napi::Object exports, void* environment);

}  // namespace ubd
