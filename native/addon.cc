// The addon's entry: what each environment gets, and when it is taken back.
#include <napi.h>

#include "calls.h"
#include "environment.h"
#include "extents.h"
#include "memory.h"
#include "process.h"
#include "ring.h"
#include "sys.h"
#include "tree.h"

namespace {

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  auto* environment = new ubd::Environment();
  // SAFETY: hooks run in reverse order of registration, on the environment's own thread, after its
  // last JavaScript: Node has detached the external ArrayBuffers by then, and no function of ours
  // runs again.
  env.AddCleanupHook([environment] { delete environment; });

  ubd::DefineMemory(env, exports, environment);
  ubd::DefineRing(env, exports, environment);
  ubd::DefineCalls(env, exports, environment);
  ubd::DefineExtents(env, exports, environment);
  ubd::DefineProcess(env, exports, environment);
  ubd::DefineSys(env, exports, environment);
  ubd::DefineTree(env, exports, environment);
  return exports;
}

}  // namespace

NODE_API_MODULE(ubd, Init)
