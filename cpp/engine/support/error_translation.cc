#include "support/error_translation.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <new>
#include <string_view>
#include <system_error>

#include "support/cancellation.h"
#include "support/engine_error.h"

namespace diad {

namespace {

// LibTorch's allocators say it in words, and so does oneDNN, whose error carries no type that survives
// TorchScript: creating a primitive or a memory object fails where it cannot map memory for code or scratch.
// CUDA's libraries have statuses for it, and one that a full device gives when they start; LibTorch tries
// cuDNN's ways to compute a convolution until one finds memory, and then says that there was none.
constexpr std::string_view kAllocationFailures[] = {"not enough memory",
                                                    "can't allocate memory",
                                                    "out of memory",
                                                    "bad_alloc",
                                                    "could not create a primitive",
                                                    "could not create a memory",
                                                    "STATUS_ALLOC_FAILED",
                                                    "_ALLOCATION_FAILED",
                                                    "STATUS_NOT_INITIALIZED",
                                                    "unable to find an engine to execute this computation"};

bool is_allocation_failure(std::string_view message) {
  return std::ranges::any_of(kAllocationFailures, [&](std::string_view words) {
    return message.find(words) != std::string_view::npos;
  });
}

// TorchScript wraps an operator's error in a listing of the graph; its last line says what happened.
std::string last_sentence(const std::string& message) {
  const size_t end = message.find_last_not_of(" \n\t");
  if (end == std::string::npos) return "no message";
  const std::string trimmed = message.substr(0, end + 1);
  const auto first_line = [&](size_t begin) {
    return trimmed.substr(begin, trimmed.find('\n', begin) - begin);
  };
  if (trimmed.find("Traceback of TorchScript") == std::string::npos) return first_line(0);
  const size_t begin = trimmed.rfind("RuntimeError: ");
  return begin == std::string::npos ? trimmed.substr(trimmed.rfind('\n') + 1) : first_line(begin + 14);
}

}  // namespace

Failure describe_failure(const std::exception& error) {
  if (const auto* own = dynamic_cast<const EngineError*>(&error)) return {own->code(), own->what()};
  const auto* system = dynamic_cast<const std::system_error*>(&error);
  if (system != nullptr && system->code() == std::errc::resource_unavailable_try_again) {
    return {code::kOutOfMemory,
            "The system gives this process no further thread; lower its load or raise its limits"};
  }
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  const std::string message = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
      dynamic_cast<const std::bad_alloc*>(&error) != nullptr || is_allocation_failure(message)) {
    return {code::kOutOfMemory,
            "Not enough memory for this batch; use a smaller maxBatch or a smaller model (" +
                last_sentence(message) + ")"};
  }
  std::string said = last_sentence(message);
  if (said.find("CUDA error: ") != std::string::npos)
    said += "; most such errors end a process's use of CUDA: it must be started again";
  return {code::kInternal, std::move(said)};
}

Failure describe_current_failure() noexcept {
  try {
    try {
      throw;
    } catch (const std::exception& error) {
      return describe_failure(error);
    } catch (const Cancelled&) {
      return {code::kClosed, "Nobody waited for the result any more"};
    } catch (...) {
      return {code::kInternal, "An unknown exception left LibTorch"};
    }
  } catch (...) {  // no memory for words
    return no_memory();
  }
}

Failure no_memory() noexcept { return {code::kOutOfMemory, "Out of memory"}; }

}  // namespace diad
