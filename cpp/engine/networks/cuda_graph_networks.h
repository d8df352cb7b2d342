// Modules whose work an accelerator records once and repeats: at few images most of the time goes into
// launching kernels, one by one.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "networks/networks.h"

namespace diad {

using Tensors = std::vector<at::Tensor>;

// What a device was told to do, ready to be done again on the same memory.
class Recording {
 public:
  Recording() = default;
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  virtual ~Recording() = default;

  virtual void replay() = 0;  // on the current stream
  Tensors outputs;            // what the work returned; replay() writes them again
};

// Records `work`, which may be done in recording or not. Throws what `work` or the device throws.
using Recorder = std::function<std::unique_ptr<Recording>(const std::function<Tensors()>& work)>;

// A recorder of `device`, empty where there are no recordings of it (device_graphs).
[[nodiscard]] Recorder graph_recorder(c10::Device device);

// The modules with every call recorded, for each step and for batches of 1, 2, 4, ... 64 images: others are
// filled up with repetitions of their last image. A recording is used once it has given what plain execution
// gives; where it cannot be made or gives something else (a warning says so), and for larger batches,
// execution stays plain.
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
    std::unique_ptr<Recording> recording;  // null: not to be had
  };
  using Compute = std::function<Tensors(const Tensors&)>;

  Tensors run(Method method, int64_t step, const Tensors& inputs, const Compute& compute);
  Tensors run_first(Known& known, const Compute& compute);

  std::unique_ptr<Networks> plain_;
  Recorder recorder_;
  std::map<std::tuple<Method, int64_t, int64_t>, Known> known_;  // by method, step, images
};

}  // namespace diad
