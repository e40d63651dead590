// Checked arguments of one call from TypeScript.
//
// The first wrong argument throws (TypeError or RangeError, naming function and argument); from
// then on everything reads as zero, so a function reads all its arguments and then asks once: `if
// (!args.ok())`.
#pragma once

#include <napi.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>

namespace ubd {

// A function without the C++ wrapper, for the few that are called for each request.
inline napi_value NewFunction(napi_env env, const char* name, napi_callback callback, void* data) {
  napi_value function = nullptr;
  napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, data, &function);
  return function;
}

// The largest whole number that a JavaScript number holds exactly.
inline constexpr double kSafeIntegerMax = 9007199254740991.0;

// A whole number within [min, max], which lie within the safe integers; not NaN, not infinite. By
// conversion, which is two instructions where std::trunc is a call.
inline bool IsWhole(double value, double min, double max) {
  return value >= min && value <= max && static_cast<double>(static_cast<int64_t>(value)) == value;
}

class Args {
 public:
  Args(const Napi::CallbackInfo& info, const char* function) : info_(info), function_(function) {}

  bool ok() const { return ok_; }

  double Whole(size_t index, const char* name, double min, double max) {
    if (!ok_) return 0;
    double value = 0;
    const bool isNumber = napi_get_value_double(info_.Env(), info_[index], &value) == napi_ok;
    if (isNumber && IsWhole(value, min, max)) return value;
    NotWhole(isNumber, name, min, max);
    return 0;
  }

  int32_t Int32(size_t index, const char* name) {
    return static_cast<int32_t>(Whole(index, name, std::numeric_limits<int32_t>::min(),
                                      std::numeric_limits<int32_t>::max()));
  }

  uint32_t Uint32(size_t index, const char* name,
                  uint32_t max = std::numeric_limits<uint32_t>::max()) {
    return static_cast<uint32_t>(Whole(index, name, 0, max));
  }

  // Any int is a fair file descriptor: the kernel answers EBADF for those that are none.
  int Fd(size_t index, const char* name = "fd") { return Int32(index, name); }

  bool IsNull(size_t index) const { return info_[index].IsNull(); }
  bool IsNumber(size_t index) const { return info_[index].IsNumber(); }

  // The bytes of a Uint8Array: valid until the call returns to TypeScript. Empty if it is detached.
  std::span<uint8_t> Bytes(size_t index, const char* name) {
    if (!ok_) return {};
    napi_typedarray_type type = napi_int8_array;
    size_t length = 0;
    void* data = nullptr;
    bool isTypedArray = false;
    napi_is_typedarray(info_.Env(), info_[index], &isTypedArray);
    if (!isTypedArray ||
        napi_get_typedarray_info(info_.Env(), info_[index], &type, &length, &data, nullptr,
                                 nullptr) != napi_ok ||
        type != napi_uint8_array) {
      WrongType(name, "a Uint8Array");
      return {};
    }
    return data == nullptr ? std::span<uint8_t>() : std::span(static_cast<uint8_t*>(data), length);
  }

  // Text for the kernel: without NUL, shorter than a page.
  std::string Text(size_t index, const char* name) {
    if (!ok_) return {};
    if (!info_[index].IsString()) {
      WrongType(name, "a string");
      return {};
    }
    std::string text = info_[index].As<Napi::String>().Utf8Value();
    if (text.size() >= kTextBytesMax || text.find('\0') != std::string::npos) {
      OutOfRange(name, "without NUL and shorter than 4096 bytes");
      return {};
    }
    return text;
  }

  std::optional<std::string> TextOrNull(size_t index, const char* name) {
    if (!ok_ || IsNull(index)) return std::nullopt;
    return Text(index, name);
  }

  void WrongType(const char* name, const std::string& expected) {
    if (!ok_) return;
    ok_ = false;
    Napi::TypeError::New(info_.Env(), Message(name, expected)).ThrowAsJavaScriptException();
  }

  void OutOfRange(const char* name, const std::string& expected) {
    if (!ok_) return;
    ok_ = false;
    Napi::RangeError::New(info_.Env(), Message(name, expected)).ThrowAsJavaScriptException();
  }

 private:
  static constexpr size_t kTextBytesMax = 4096;

  // Apart from what asks for it, which so is small enough to be part of each function.
  [[gnu::cold, gnu::noinline]] void NotWhole(bool isNumber, const char* name, double min,
                                             double max) {
    if (isNumber) OutOfRange(name, "a whole number from " + Print(min) + " to " + Print(max));
    else WrongType(name, "a number");
  }

  std::string Message(const char* name, const std::string& expected) const {
    return std::string(function_) + ": " + name + " must be " + expected;
  }
  static std::string Print(double value) { return std::to_string(static_cast<int64_t>(value)); }

  const Napi::CallbackInfo& info_;
  const char* function_;
  bool ok_ = true;
};

}  // namespace ubd
