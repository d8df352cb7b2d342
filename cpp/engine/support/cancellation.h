// Whether what this thread computes is still wanted: asked between layers, so that exit and close() need not
// wait for the end of a step.
#pragma once

#include <functional>

namespace diad {

// Thrown where a computation was found unwanted. No std::exception on purpose: TorchScript's interpreter
// would wrap one into a listing of the graph, this passes through it.
struct Cancelled {};

// While one lives, check_cancelled on its thread asks `unwanted`, which may be called often and must not
// block.
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

// What check_cancelled asks on this thread, to be handed to another one that works for it; a function that
// says false without a scope.
[[nodiscard]] std::function<bool()> current_cancellation();

// Throws Cancelled when the computation this thread is in is unwanted; does nothing on a thread without a
// scope.
void check_cancelled();

}  // namespace diad
