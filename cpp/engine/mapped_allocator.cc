#include "mapped_allocator.h"

#include <c10/core/CPUAllocator.h>

#include <cstring>
#include <new>

#ifndef _WIN32
#include <sys/mman.h>
#endif

namespace diad {

namespace {

constexpr size_t kOwnMapping = 1 << 20;  // bytes
constexpr size_t kHugePages = 4 << 20;   // bytes from which large pages are asked for: weights are read from end to end, again and again

#ifndef _WIN32

struct Mapping {
  void* address;
  size_t bytes;
};

void unmap(void* context) {
  const auto* mapping = static_cast<Mapping*>(context);
  munmap(mapping->address, mapping->bytes);
  delete mapping;
}

class MappedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kOwnMapping) return c10::GetCPUAllocator()->allocate(bytes);
    void* const address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (bytes >= kHugePages) madvise(address, bytes, MADV_HUGEPAGE);  // a wish: without it pages are small
#endif
    return {address, new Mapping{address, bytes}, unmap, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }  // the address alone does not say how it was allocated
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

#endif

}  // namespace

c10::Allocator* mapped_allocator() {
#ifdef _WIN32
  return c10::GetCPUAllocator();
#else
  static auto* const allocator = new MappedAllocator;  // never destroyed: tensors may outlive static destructors
  return allocator;
#endif
}

}  // namespace diad
