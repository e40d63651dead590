// runCalls: a batch of plain system calls in one crossing.
#pragma once

#include <napi.h>

namespace ubd {

void DefineCalls(Napi::Env env, Napi::Object exports, void* environment);

}  // namespace ubd
