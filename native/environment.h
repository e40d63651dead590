// What the addon holds for one environment: the main thread, or one worker. There is no other
// state, so any number of threads may load the addon; each releases its own when it ends.
#pragma once

#include <napi.h>

#include "memory.h"
#include "ring.h"

namespace ubd {

// What ringEnter is called with, and its result. In memory, since numbers that are passed cost more
// than the crossing itself.
struct EnterCall {
  int32_t fd = -1;
  uint32_t toSubmit = 0;
  uint32_t minComplete = 0;
  uint32_t flags = 0;
  int32_t result = 0;
};

struct Environment {
  // `rings` is declared last: rings go first, so that the kernel is done with the memory before it
  // goes.
  MemoryRegistry memory;
  Rings rings;
  // Written by TypeScript, through an ArrayBuffer over it.
  EnterCall enterCall;

  static Environment& Of(const Napi::CallbackInfo& info) {
    return *static_cast<Environment*>(info.Data());
  }

  ~Environment() {
    rings.Clear(&memory);
    memory.Clear();
  }
};

}  // namespace ubd
