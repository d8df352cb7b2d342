// Interface to the networks of a bundle, so that other module formats can be added next to TorchScript.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <memory>

#include "bundle/bundle.h"
#include "networks/features.h"
#include "networks/precision.h"
#include "support/engine_error.h"

namespace diad {

// All tensors are on the device of the networks, and in their precision except in extract() and embed(). Not
// thread-safe: calls must not overlap.
class Networks {
 public:
  Networks() = default;
  Networks(const Networks&) = delete;
  Networks& operator=(const Networks&) = delete;
  virtual ~Networks() = default;

  // x [N, 3, S, S] -> moments [N, 2C, s, s]: mean, then log variance.
  virtual at::Tensor encode(const at::Tensor& x) = 0;
  // x [N, 3, S, S] -> hint features [N, K, s, s].
  virtual at::Tensor guide(const at::Tensor& x) = 0;
  // z [N, C, s, s], hint, step (index into the manifest's steps) -> eps [N, C, s, s].
  virtual at::Tensor denoise(const at::Tensor& z, const at::Tensor& hint, int64_t step) = 0;
  // z [N, C, s, s], divided by the latent scale -> reconstruction [N, 3, S, S].
  virtual at::Tensor decode(const at::Tensor& z) = 0;
  // x [N, 3, S, S] -> three feature maps. Always float32: 1 - cosine similarity of nearly equal features
  // would lose most digits in half precision, and this network is the cheapest.
  virtual Features extract(const at::Tensor& x) = 0;
  // Feature maps of N images -> vectors compared with the memory, [N, D, G, G], float32. Throws EngineError
  // ERR_DIAD_BUNDLE_INVALID for bundles without evidence.
  virtual at::Tensor embed(const Features& maps);
};

inline at::Tensor Networks::embed(const Features& /*maps*/) {
  throw EngineError(code::kBundleInvalid, "extractor.pt has no method embed");
}

// Loads a bundle's TorchScript files, casts them to `precision` (the extractor to float32, never quantized)
// and freezes them. Throws EngineError: ERR_DIAD_BUNDLE_CORRUPT (not loadable), ERR_DIAD_BUNDLE_INVALID (a
// method is missing) or ERR_DIAD_OUT_OF_MEMORY.
[[nodiscard]] std::unique_ptr<Networks> load_networks(const Bundle& bundle, c10::Device device,
                                                      Precision precision);

}  // namespace diad
