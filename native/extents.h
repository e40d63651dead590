// Where a file has data and where it has holes, found out on a thread of the pool.
#pragma once

#include <napi.h>

namespace ubd {

void DefineExtents(Napi::Env env, Napi::Object exports, void* environment);

}  // namespace ubd
