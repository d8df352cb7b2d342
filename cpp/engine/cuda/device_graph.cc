#include "cuda/device_graph.h"

#if __has_include(<ATen/accelerator/Graph.h>)
#include <ATen/accelerator/Graph.h>
#define DIAD_HAS_REGISTERED_GRAPHS 1
#endif

namespace diad {

namespace {

#ifdef DIAD_HAS_REGISTERED_GRAPHS

// Graph of an accelerator that registers its implementation with LibTorch. CUDA does not as of 2.13.
class RegisteredGraph final : public DeviceGraph {
 public:
  void begin(Pool pool) override { graph_.capture_begin(pool, at::GraphCaptureMode::ThreadLocal); }
  void end() override { graph_.capture_end(); }
  void replay() override { graph_.replay(); }
  Pool pool() override { return graph_.pool(); }

 private:
  at::accelerator::Graph graph_;
};

#endif

}  // namespace

DeviceGraphs device_graphs([[maybe_unused]] c10::Device device) {
  if (device.is_cuda()) return cuda_graphs();
#ifdef DIAD_HAS_REGISTERED_GRAPHS
  if (at::has_graph_impl(device.type())) return [] { return std::make_unique<RegisteredGraph>(); };
#endif
  return {};
}

}  // namespace diad
