// Translates exceptions into a code and a message without C++ stack traces.
#pragma once

#include <exception>
#include <string>

namespace diad {

struct Failure {
  const char* code;  // one of diad::code
  std::string message;
};

// EngineErrors keep their code, cancellations become ERR_DIAD_CLOSED, allocation failures become
// ERR_DIAD_OUT_OF_MEMORY, and anything else becomes ERR_DIAD_INTERNAL.
[[nodiscard]] Failure describe_failure(const std::exception& error);

// The same for the current exception; call it inside a catch block.
[[nodiscard]] Failure describe_current_failure() noexcept;

// ERR_DIAD_OUT_OF_MEMORY with a message short enough to need no allocation.
[[nodiscard]] Failure no_memory() noexcept;

}  // namespace diad
