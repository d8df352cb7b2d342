// Captures work on a device once and replays it as a whole.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>
#include <utility>

namespace diad {

// One captured graph. Everything happens on the current stream, which must not be the default stream between
// begin() and end().
class DeviceGraph {
 public:
  // Pool id of LibTorch; {0, 0} creates a new pool.
  using Pool = std::pair<unsigned long long, unsigned long long>;

  DeviceGraph() = default;
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;
  virtual ~DeviceGraph() = default;

  // Other threads can use the device during the capture; their work is not captured.
  virtual void begin(Pool pool) = 0;
  virtual void end() = 0;  // if it throws, the capture has ended and its memory is released
  virtual void replay() = 0;
  [[nodiscard]] virtual Pool pool() = 0;  // after end(): for graphs that share its memory
};

using DeviceGraphs = std::function<std::unique_ptr<DeviceGraph>()>;

// Returns a factory of graphs on `device`, empty if LibTorch does not support it.
[[nodiscard]] DeviceGraphs device_graphs(c10::Device device);

// Factory for CUDA; empty if the engine was built without CUDA headers or runs with a CPU-only LibTorch.
[[nodiscard]] DeviceGraphs cuda_graphs();

}  // namespace diad
