// What the addon holds for one environment: the main thread, or one worker. There is no other
// state, so any number of threads may load the addon; each releases its own when it ends.
#pragma once

#include <napi.h>

#include "memory.h"
#include "ring.h"

namespace ubd {

struct Environment {
  // `rings` is declared last: rings go first, so that the kernel is done with the memory before it
  // goes.
  MemoryRegistry memory;
  Rings rings;

  static Environment& Of(const Napi::CallbackInfo& info) {
    return *static_cast<Environment*>(info.Data());
  }

  ~Environment() {
    rings.Clear(&memory);
    memory.Clear();
  }
};

}  // namespace ubd
