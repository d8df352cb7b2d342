// Memory that is mapped piece by piece, outside the C library's heap: what is freed there stays with the
// process, cut up.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

namespace diad {

// For weights: from 1 MiB on a mapping of its own; less, and everything where there are no anonymous mappings
// (Windows), comes from LibTorch's allocator. Plain weights go one by one while packed ones are made.
[[nodiscard]] c10::Allocator* mapped_allocator();

// While one that is on lives, what this thread's layers compute is mapped likewise (pooled_empty). Pieces
// that are let go wait, joined with their neighbors, for the next layers, which take of them what they need:
// the system need not clear memory again. All together take no more than was in use at once since the last
// trim_pool(); the scope's end, however it comes about, unmaps what waits, as does letting go of a piece
// after it. In the heap they would take more: an aligned piece does not fit where one of its size was.
class PooledScope {
 public:
  explicit PooledScope(bool on);
  ~PooledScope();
  PooledScope(const PooledScope&) = delete;
  PooledScope& operator=(const PooledScope&) = delete;

 private:
  bool before_;
};

// The pool's allocator in a PooledScope, LibTorch's elsewhere.
[[nodiscard]] c10::Allocator* pooled_allocator();

// An uninitialized tensor of that allocator.
[[nodiscard]] at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType type,
                                      at::MemoryFormat format = at::MemoryFormat::Contiguous);

// Unmaps what waits in the pool.
void trim_pool();

// Bytes of the pool.
struct PoolBytes {
  size_t used, waiting;
};
[[nodiscard]] PoolBytes pool_bytes();

}  // namespace diad
