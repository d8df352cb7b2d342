#include "support/cancellation.h"

#include <utility>

namespace diad {

namespace {

thread_local const std::function<bool()>* asked = nullptr;

}  // namespace

CancellationScope::CancellationScope(std::function<bool()> is_cancelled)
    : is_cancelled_(std::move(is_cancelled)), outer_(asked) {
  asked = &is_cancelled_;
}

CancellationScope::~CancellationScope() { asked = outer_; }

std::function<bool()> current_cancellation() {
  if (asked == nullptr) return [] { return false; };
  return *asked;
}

void check_cancelled() {
  if (asked != nullptr && (*asked)()) throw Cancelled{};
}

}  // namespace diad
