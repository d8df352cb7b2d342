// Errors inside the engine: a stable code and a readable message.
#pragma once

#include <stdexcept>
#include <string>

namespace diad {

namespace code {
inline constexpr const char* kInvalidArgument = "ERR_DIAD_INVALID_ARGUMENT";
inline constexpr const char* kBundleNotFound = "ERR_DIAD_BUNDLE_NOT_FOUND";
inline constexpr const char* kBundleInvalid = "ERR_DIAD_BUNDLE_INVALID";
inline constexpr const char* kBundleCorrupt = "ERR_DIAD_BUNDLE_CORRUPT";
inline constexpr const char* kDeviceUnavailable = "ERR_DIAD_DEVICE_UNAVAILABLE";
inline constexpr const char* kOutOfMemory = "ERR_DIAD_OUT_OF_MEMORY";
inline constexpr const char* kQueueFull = "ERR_DIAD_QUEUE_FULL";
inline constexpr const char* kTimeout = "ERR_DIAD_TIMEOUT";
inline constexpr const char* kCancelled = "ERR_DIAD_CANCELLED";
inline constexpr const char* kClosed = "ERR_DIAD_CLOSED";
inline constexpr const char* kInternal = "ERR_DIAD_INTERNAL";
}  // namespace code

class EngineError : public std::runtime_error {
 public:
  EngineError(const char* error_code, const std::string& message)
      : std::runtime_error(message), code_(error_code) {}
  [[nodiscard]] const char* code() const noexcept { return code_; }

 private:
  const char* code_;  // one of diad::code, static storage
};

}  // namespace diad
