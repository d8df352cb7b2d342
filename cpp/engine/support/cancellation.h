// Cooperative cancellation, checked between layers, so that exit and close() do not wait for the end of a
// step.
#pragma once

#include <functional>

namespace diad {

// Thrown when a computation is cancelled. Deliberately not a std::exception: TorchScript's interpreter would
// wrap that into a listing of the graph.
struct Cancelled {};

// While a scope exists, check_cancelled on its thread calls `is_cancelled`, which is called often and must
// not block.
class CancellationScope {
 public:
  explicit CancellationScope(std::function<bool()> is_cancelled);
  CancellationScope(const CancellationScope&) = delete;
  CancellationScope& operator=(const CancellationScope&) = delete;
  ~CancellationScope();

 private:
  const std::function<bool()> is_cancelled_;
  const std::function<bool()>* const outer_;
};

// Returns the current check of this thread, to be passed to another thread that works for it. Without a
// scope, returns a function that always returns false.
[[nodiscard]] std::function<bool()> current_cancellation();

// Throws Cancelled if the computation of this thread is cancelled. Does nothing without a scope.
void check_cancelled();

}  // namespace diad
