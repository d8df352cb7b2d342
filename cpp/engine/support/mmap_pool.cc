#include "support/mmap_pool.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <utility>

#ifndef _WIN32
#include <sys/mman.h>
#endif

namespace diad {

namespace {

thread_local bool in_scope = false;

#ifndef _WIN32

constexpr size_t kOwnMapping = 1 << 20;  // bytes
// Size from which huge pages are requested: mappings are read from end to end repeatedly.
constexpr size_t kHugePages = 4 << 20;  // bytes
// Allocated pieces end at a page boundary, so that the rest of a mapping can be unmapped.
constexpr size_t kPage = 4 << 10;  // bytes

struct Mapping {
  void* address;
  size_t bytes;
};

Mapping map(size_t bytes) {
  void* const address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (bytes >= kHugePages) madvise(address, bytes, MADV_HUGEPAGE);  // a hint: failure is ignored
#endif
  return {address, bytes};
}

void unmap(const Mapping& mapping) { munmap(mapping.address, mapping.bytes); }

// Free pieces by address. Neighboring pieces are merged, and an allocation takes what it needs from the
// smallest piece that fits.
class Pool {
 public:
  Mapping take(size_t wanted) {
    const std::scoped_lock lock(mutex_);
    const size_t bytes = whole_pages(wanted);
    auto best = waiting_.end();
    for (auto piece = waiting_.begin(); piece != waiting_.end(); ++piece) {
      if (piece->second >= bytes && (best == waiting_.end() || piece->second < best->second)) best = piece;
    }
    if (best != waiting_.end()) return from(best, bytes);
    const size_t most = std::max(most_used_, of_.used + bytes);
    while (of_.waiting > 0 && of_.used + of_.waiting + bytes > most) drop_largest();
    const Mapping mapping = map_or_give_back(bytes);
    use(bytes);
    return mapping;
  }

  // `again`: keep the piece for reuse.
  void put(const Mapping& mapping, bool again) noexcept {
    const std::scoped_lock lock(mutex_);
    of_.used -= mapping.bytes;
    try {
      if (again) return wait(mapping);
    } catch (const std::bad_alloc&) {  // no memory for the list node
    }
    unmap(mapping);
  }

  void release() {
    const std::scoped_lock lock(mutex_);
    drop_all();
    most_used_ = of_.used;
  }

  PoolBytes bytes() {
    const std::scoped_lock lock(mutex_);
    return of_;
  }

 private:
  using Pieces = std::map<char*, size_t>;

  static size_t whole_pages(size_t bytes) {
    if (bytes > std::numeric_limits<size_t>::max() - kPage) throw std::bad_alloc();
    return (bytes + kPage - 1) / kPage * kPage;
  }

  Mapping from(Pieces::iterator piece, size_t bytes) {
    char* const address = piece->first;
    const size_t rest = piece->second - bytes;
    auto node = waiting_.extract(piece);
    if (rest > 0) {
      node.key() = address + bytes;
      node.mapped() = rest;
      waiting_.insert(std::move(node));
    }
    of_.waiting -= bytes;
    use(bytes);
    return {address, bytes};
  }

  void wait(const Mapping& mapping) {
    auto* const address = static_cast<char*>(mapping.address);
    const auto after = waiting_.lower_bound(address);
    auto piece = waiting_.emplace_hint(after, address, mapping.bytes);
    of_.waiting += mapping.bytes;
    join(piece, after);
    if (piece != waiting_.begin()) join(std::prev(piece), piece);
  }

  void join(Pieces::iterator piece, Pieces::iterator next) {
    if (next == waiting_.end() || piece->first + piece->second != next->first) return;
    piece->second += next->second;
    waiting_.erase(next);
  }

  void use(size_t bytes) {
    of_.used += bytes;
    most_used_ = std::max(most_used_, of_.used);
  }

  // Unmaps the free pieces if the system is out of memory, then tries again.
  Mapping map_or_give_back(size_t bytes) {
    try {
      return map(bytes);
    } catch (const std::bad_alloc&) {
      if (waiting_.empty()) throw;
    }
    drop_all();
    return map(bytes);
  }

  void drop_all() {
    for (const auto& [address, bytes] : waiting_) unmap({address, bytes});
    waiting_.clear();
    of_.waiting = 0;
  }

  void drop_largest() {
    const auto largest = std::max_element(waiting_.begin(), waiting_.end(),
                                          [](const auto& a, const auto& b) { return a.second < b.second; });
    unmap({largest->first, largest->second});
    of_.waiting -= largest->second;
    waiting_.erase(largest);
  }

  std::mutex mutex_;
  Pieces waiting_;
  PoolBytes of_{0, 0};
  size_t most_used_ = 0;
};

Pool& pool() {
  static auto* const only = new Pool;  // never destroyed: tensors can outlive static destructors
  return *only;
}

void unmap_context(void* context) {
  const auto* mapping = static_cast<Mapping*>(context);
  unmap(*mapping);
  delete mapping;
}

void put_context(void* context) {
  const auto* mapping = static_cast<Mapping*>(context);
  pool().put(*mapping, in_scope);
  delete mapping;
}

class MappedAllocator final : public c10::Allocator {
 public:
  explicit MappedAllocator(bool pooled) : pooled_(pooled) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kOwnMapping) return c10::GetCPUAllocator()->allocate(bytes);
    auto mapping = std::make_unique<Mapping>();
    *mapping = pooled_ ? pool().take(bytes) : map(bytes);
    void* const address = mapping->address;
    return {address, mapping.release(), pooled_ ? put_context : unmap_context, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return nullptr;
  }  // the address does not identify the allocator
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }

 private:
  bool pooled_;
};

#endif

}  // namespace

#ifdef _WIN32

c10::Allocator* mapped_allocator() { return c10::GetCPUAllocator(); }
c10::Allocator* pooled_allocator() { return c10::GetCPUAllocator(); }
void trim_pool() {}
PoolBytes pool_bytes() { return {0, 0}; }

#else

c10::Allocator* mapped_allocator() {
  static auto* const allocator = new MappedAllocator(false);  // never destroyed, like the pool
  return allocator;
}

c10::Allocator* pooled_allocator() {
  static auto* const allocator = new MappedAllocator(true);
  return in_scope ? allocator : c10::GetCPUAllocator();
}

void trim_pool() { pool().release(); }
PoolBytes pool_bytes() { return pool().bytes(); }

#endif

PooledScope::PooledScope(bool on) : before_(std::exchange(in_scope, on)) {}
PooledScope::~PooledScope() {
  if (in_scope && !before_) trim_pool();
  in_scope = before_;
}

at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType type, at::MemoryFormat format) {
  return at::detail::empty_generic(sizes, pooled_allocator(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   type, format);
}

}  // namespace diad
