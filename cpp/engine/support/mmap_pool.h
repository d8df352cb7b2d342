// Memory mapped outside the C library's heap, which would keep freed memory in the process and fragment it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

namespace diad {

// Allocator for weights: maps blocks of at least 1 MiB individually. Smaller blocks, and all blocks on
// Windows, come from LibTorch's allocator. Original weights are thus released one by one while they are
// packed.
[[nodiscard]] c10::Allocator* mapped_allocator();

// While an enabled scope exists, results of this thread's layers are allocated from a pool of mappings
// (pooled_empty). Freed pieces are merged with their neighbors and reused by the next layers, which saves the
// system from clearing pages again. The pool holds at most the peak use since the last trim_pool(). The end
// of the scope unmaps free pieces; a piece freed later is unmapped at once. The heap would need more memory:
// an aligned block does not fit into a free block of the same size.
class PooledScope {
 public:
  explicit PooledScope(bool on);
  ~PooledScope();
  PooledScope(const PooledScope&) = delete;
  PooledScope& operator=(const PooledScope&) = delete;

 private:
  bool before_;
};

// Returns the pool's allocator inside a PooledScope, otherwise LibTorch's.
[[nodiscard]] c10::Allocator* pooled_allocator();

// Returns an uninitialized tensor from pooled_allocator().
[[nodiscard]] at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType type,
                                      at::MemoryFormat format = at::MemoryFormat::Contiguous);

// Unmaps the free pieces of the pool.
void trim_pool();

// Size of the pool in bytes; `waiting` is free.
struct PoolBytes {
  size_t used, waiting;
};
[[nodiscard]] PoolBytes pool_bytes();

}  // namespace diad
