// Recordings by LibTorch's class for CUDA. The engine is linked with a LibTorch that may be one for CPUs, so
// what it needs of CUDA's is weak: found when the engine is opened beside a LibTorch for CUDA, null
// otherwise.
#include "cuda/device_graph.h"

#ifdef DIAD_CUDA_HEADERS  // CMakeLists.txt: they were found

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda.h>

#include <exception>

static_assert(CUDA_VERSION >= 12040,
              "the class has other members for an older CUDA: LibTorch for CUDA is built with a newer one");

__asm__(
    ".weak _ZN2at4cuda9CUDAGraphC2Eb\n"
    ".weak _ZN2at4cuda9CUDAGraphD2Ev\n"
    ".weak _ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode\n"
    ".weak _ZN2at4cuda9CUDAGraph11capture_endEv\n"
    ".weak _ZN2at4cuda9CUDAGraph6replayEv\n"
    ".weak _ZN2at4cuda9CUDAGraph4poolEv\n"
    ".weak _ZN3c104cuda20CUDACachingAllocator9allocatorE\n");

// One of them under a name whose address may be null.
extern "C" __attribute__((weak)) void diad_cuda_graph_constructor() __asm__("_ZN2at4cuda9CUDAGraphC2Eb");

namespace diad {

namespace {

class CudaGraph final : public DeviceGraph {
 public:
  void begin(Pool pool) override {
    graph_.rollback_on_error([&] { graph_.capture_begin(pool, cudaStreamCaptureModeThreadLocal); });
  }
  void end() override {
    graph_.rollback_on_error([&] { graph_.capture_end(); });
  }
  void replay() override { graph_.replay(); }
  Pool pool() override { return graph_.pool(); }

 private:
  // LibTorch's, which leaves its allocators as they are when a recording cannot be begun or ended: they would
  // go on asking it, even when it is gone, for which streams they work, and keep all memory until the process
  // ends.
  struct Graph : at::cuda::CUDAGraph {
    template <typename Action>
    void rollback_on_error(const Action& action) {
      try {
        action();
      } catch (...) {
        if (capture_dev_ >= 0 && !capture_ended_) undo();
        throw;
      }
    }

    void undo() const {
      namespace device = c10::cuda::CUDACachingAllocator;
      at::HostAllocator* const host = at::getHostAllocator(at::kCUDA);
      each_on_its_own([&] { device::endAllocateToPool(capture_dev_, mempool_id_); });
      each_on_its_own([&] { end_allocating(*host, mempool_id_); });
      each_on_its_own([&] { device::releasePool(capture_dev_, mempool_id_); });
      each_on_its_own([&] { release(*host, mempool_id_); });
    }

    // An older LibTorch has no pools of the host's memory.
    template <typename Host>
    static void end_allocating(Host& host, Pool pool) {
      if constexpr (requires { host.end_allocate_to_pool(pool); }) host.end_allocate_to_pool(pool);
    }
    template <typename Host>
    static void release(Host& host, Pool pool) {
      if constexpr (requires { host.release_pool(pool); }) host.release_pool(pool);
    }

    // How far a recording had come is not known: what was not begun cannot be ended, and says so.
    template <typename Action>
    static void each_on_its_own(const Action& action) {
      try {
        action();
      } catch (const std::exception&) {
      }
    }
  };

  Graph graph_;
};

}  // namespace

DeviceGraphs cuda_graphs() {
  if (diad_cuda_graph_constructor == nullptr) return {};
  return [] { return std::make_unique<CudaGraph>(); };
}

}  // namespace diad

#else

namespace diad {

DeviceGraphs cuda_graphs() { return {}; }

}  // namespace diad

#endif
