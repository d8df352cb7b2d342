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

// LibTorch's allocators and oneDNN report out-of-memory only in their messages; oneDNN fails to create a
// primitive or memory object if it cannot map memory for code or scratch space. CUDA's libraries have status
// codes for it, including one that they return when they start on a full device. LibTorch tries cuDNN's
// engines for a convolution one by one and reports that none worked.
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

// Extracts the last line: TorchScript wraps an operator's error in a listing of the graph.
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
            "Could not create a thread: process limit reached; lower the load or raise the limit"};
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
    said += "; most CUDA errors cannot be recovered from: restart the process";
  return {code::kInternal, std::move(said)};
}

Failure describe_current_failure() noexcept {
  try {
    try {
      throw;
    } catch (const std::exception& error) {
      return describe_failure(error);
    } catch (const Cancelled&) {
      return {code::kClosed, "Request cancelled"};
    } catch (...) {
      return {code::kInternal, "An unknown exception left LibTorch"};
    }
  } catch (...) {  // no memory for the message
    return no_memory();
  }
}

Failure no_memory() noexcept { return {code::kOutOfMemory, "Out of memory"}; }

}  // namespace diad
