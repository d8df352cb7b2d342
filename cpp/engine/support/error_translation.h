// What an exception means to the caller: a code and a message without C++ stack traces.
#pragma once

#include <exception>
#include <string>

namespace diad {

struct Failure {
  const char* code;  // one of diad::code
  std::string message;
};

// EngineErrors keep their code; interruptions become ERR_DIAD_CLOSED, failed allocations become
// ERR_DIAD_OUT_OF_MEMORY; anything else ERR_DIAD_INTERNAL.
[[nodiscard]] Failure describe_failure(const std::exception& error);

// The same for the exception being handled; call it inside a catch (...) block.
[[nodiscard]] Failure describe_current_failure() noexcept;

// ERR_DIAD_OUT_OF_MEMORY in so few letters that the string needs no memory of its own.
[[nodiscard]] Failure no_memory() noexcept;

}  // namespace diad
