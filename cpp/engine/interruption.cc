#include "interruption.h"

#include <utility>

namespace diad {

namespace {

thread_local const std::function<bool()>* asked = nullptr;

}  // namespace

InterruptionScope::InterruptionScope(std::function<bool()> unwanted) : unwanted_(std::move(unwanted)), outer_(asked) { asked = &unwanted_; }

InterruptionScope::~InterruptionScope() { asked = outer_; }

std::function<bool()> what_interrupts() {
  if (asked == nullptr) return [] { return false; };
  return *asked;
}

void check_interruption() {
  if (asked != nullptr && (*asked)()) throw Interrupted{};
}

}  // namespace diad
