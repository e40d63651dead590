// A process of its own: how it is started, and how its end is noticed.
#pragma once

#include <napi.h>

namespace ubd {

void DefineProcess(Napi::Env env, Napi::Object exports, void* environment);

}  // namespace ubd
