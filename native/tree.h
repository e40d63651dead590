// What Node's own `fs` lacks for copying files exactly: opening below a directory without following
// links, extended attributes, device nodes, times to the nanosecond.
#pragma once

#include <napi.h>

namespace ubd {

void DefineTree(Napi::Env env, Napi::Object exports, void* environment);

}  // namespace ubd
