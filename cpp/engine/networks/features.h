// Feature maps of the extractor.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>

namespace diad {

using Features = std::array<at::Tensor, 3>;  // [N, C_i, H_i, W_i], strides 4, 8, 16 of the image

}  // namespace diad
