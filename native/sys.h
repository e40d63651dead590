// The few system calls that Node lacks. Each is one thin, guarded call.
#pragma once

#include <napi.h>

namespace ubd {

void DefineSys(Napi::Env env, Napi::Object exports, void* environment);

}  // namespace ubd
