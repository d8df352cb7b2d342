// Networks whose work is captured once as a graph and replayed: for small batches, launching kernels one by
// one takes most of the time.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "networks/networks.h"

namespace diad {

using Tensors = std::vector<at::Tensor>;

// Work captured on a device, ready to be replayed on the same memory.
class Recording {
 public:
  Recording() = default;
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  virtual ~Recording() = default;

  virtual void replay() = 0;  // on the current stream
  Tensors outputs;            // results of the work; replay() overwrites them
};

// Captures `work`. The work might also be executed during the capture. Throws what `work` or the device
// throws.
using Recorder = std::function<std::unique_ptr<Recording>(const std::function<Tensors()>& work)>;

// Returns a recorder for `device`, empty if the device cannot capture graphs (device_graphs).
[[nodiscard]] Recorder graph_recorder(c10::Device device);

// Networks with every call captured, for each step and for batches of 1, 2, 4, ... 64 images. Other sizes are
// padded by repeating the last image. A graph is used only if its first replay matches execution without a
// graph. Larger batches, and calls whose capture fails or returns a different result (with a warning), run
// without a graph.
class CapturedModules final : public Networks {
 public:
  CapturedModules(std::unique_ptr<Networks> plain, Recorder recorder);

  at::Tensor encode(const at::Tensor& x) override;
  at::Tensor guide(const at::Tensor& x) override;
  at::Tensor denoise(const at::Tensor& z, const at::Tensor& hint, int64_t step) override;
  at::Tensor decode(const at::Tensor& z) override;
  Features extract(const at::Tensor& x) override;
  at::Tensor embed(const Features& maps) override;

 private:
  enum class Method { kEncode, kGuide, kDenoise, kDecode, kExtract, kEmbed };
  struct Known {
    Tensors inputs;
    std::unique_ptr<Recording> recording;  // null: capture failed
  };
  using Compute = std::function<Tensors(const Tensors&)>;

  Tensors run(Method method, int64_t step, const Tensors& inputs, const Compute& compute);
  Tensors run_first(Known& known, const Compute& compute);

  std::unique_ptr<Networks> plain_;
  Recorder recorder_;
  std::map<std::tuple<Method, int64_t, int64_t>, Known> known_;  // by method, step, batch size
};

}  // namespace diad
