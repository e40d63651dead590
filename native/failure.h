// How a refusal of the kernel reaches TypeScript: a negative errno as result, or an Error with
// `code`, `errno` and `syscall`, as Node's own errors have.
#pragma once

#include <napi.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace ubd {

// Result of a system call: what it returned, or -errno. Call it before anything else can change
// errno.
inline int64_t ResultOrErrno(int64_t returned) { return returned < 0 ? -errno : returned; }

inline Napi::Value ToNumber(Napi::Env env, int64_t value) {
  return Napi::Number::New(env, static_cast<double>(value));
}

inline void ThrowErrno(Napi::Env env, int number, const char* syscall) {
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 32)
  const char* name = strerrorname_np(number);
#else
  const char* name = nullptr;
#endif
  const std::string code = name != nullptr ? name : "errno " + std::to_string(number);
  Napi::Error error = Napi::Error::New(env, code + ": " + strerror(number) + ", " + syscall);
  error.Set("code", code);
  error.Set("errno", Napi::Number::New(env, -number));
  error.Set("syscall", syscall);
  error.ThrowAsJavaScriptException();
}

}  // namespace ubd
