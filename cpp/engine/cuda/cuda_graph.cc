// CUDA graphs through LibTorch's class. The engine might be linked with a CPU-only LibTorch, so the CUDA
// symbols are weak: resolved if the engine is loaded with a CUDA build of LibTorch, null otherwise.
#include "cuda/device_graph.h"

#ifdef DIAD_CUDA_HEADERS  // defined by CMakeLists.txt if the headers were found

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda.h>

#include <exception>

static_assert(CUDA_VERSION >= 12040,
              "the layout of CUDAGraph depends on the CUDA version: 12.4 or newer is required");

__asm__(
    ".weak _ZN2at4cuda9CUDAGraphC2Eb\n"
    ".weak _ZN2at4cuda9CUDAGraphD2Ev\n"
    ".weak _ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode\n"
    ".weak _ZN2at4cuda9CUDAGraph11capture_endEv\n"
    ".weak _ZN2at4cuda9CUDAGraph6replayEv\n"
    ".weak _ZN2at4cuda9CUDAGraph4poolEv\n"
    ".weak _ZN3c104cuda20CUDACachingAllocator9allocatorE\n");

// A C name for one of the symbols, to test its address for null.
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
  // LibTorch leaves its allocators in capture mode when a capture fails to begin or end. They would keep
  // calling the destroyed graph to match streams, and hold all memory until the process ends.
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

    // Older versions of LibTorch have no pools of host memory.
    template <typename Host>
    static void end_allocating(Host& host, Pool pool) {
      if constexpr (requires { host.end_allocate_to_pool(pool); }) host.end_allocate_to_pool(pool);
    }
    template <typename Host>
    static void release(Host& host, Pool pool) {
      if constexpr (requires { host.release_pool(pool); }) host.release_pool(pool);
    }

    // The failed capture might not have reached each of these steps; undoing a step that was not done throws.
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
