// System calls that a child process makes for us, apart from our own descriptors.
#pragma once

#include <napi.h>

namespace ubd {

void DefineApart(Napi::Env env, Napi::Object exports, void* environment);

}  // namespace ubd
