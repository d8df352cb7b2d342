// What a device is told to do, recorded once and told again as a whole.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>
#include <utility>

namespace diad {

// One recording. Everything is of the current stream, which must not be the default one between begin() and
// end().
class DeviceGraph {
 public:
  using Pool =
      std::pair<unsigned long long, unsigned long long>;  // as LibTorch names pools; {0, 0}: a new one

  DeviceGraph() = default;
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;
  virtual ~DeviceGraph() = default;

  virtual void begin(
      Pool pool) = 0;      // other threads go on meanwhile: what they do is no part of the recording
  virtual void end() = 0;  // when it throws, the recording is over all the same and its memory given back
  virtual void replay() = 0;
  [[nodiscard]] virtual Pool pool() = 0;  // after end(): for recordings that are to share its memory
};

using DeviceGraphs = std::function<std::unique_ptr<DeviceGraph>()>;

// Makes recordings of `device`; empty where LibTorch has none for it.
[[nodiscard]] DeviceGraphs device_graphs(c10::Device device);

// Those of CUDA; empty where the engine was built without CUDA's headers, or with a LibTorch for CPUs.
[[nodiscard]] DeviceGraphs cuda_graphs();

}  // namespace diad
