// One DDIM step with eta 0 (Song et al. 2021, eq. 12).
#pragma once

#include <ATen/core/Tensor.h>

#include "bundle/bundle.h"

namespace diad {

// x [N, C, s, s], eps [N, C, s, s], both float32 -> the next x. The scalars are float32 roots of float32
// values, as in the published code.
[[nodiscard]] at::Tensor ddim_update(const at::Tensor& x, const at::Tensor& eps, const DdimStep& step);

}  // namespace diad
