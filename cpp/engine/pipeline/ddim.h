// One DDIM step with eta 0 (Song et al. 2021, eq. 12).
#pragma once

#include <ATen/core/Tensor.h>

#include "bundle/bundle.h"

namespace diad {

// Computes the next x from x and eps, both [N, C, s, s] float32. The scalars are float32 square roots of
// float32 values, as in the published code.
[[nodiscard]] at::Tensor ddim_update(const at::Tensor& x, const at::Tensor& eps, const DdimStep& step);

}  // namespace diad
