#include "pipeline/ddim.h"

#include <ATen/TensorOperators.h>

#include <cmath>

namespace diad {

at::Tensor ddim_update(const at::Tensor& x, const at::Tensor& eps, const DdimStep& step) {
  const double spread = std::sqrt(1.0F - step.alpha_bar);
  const double signal = std::sqrt(step.alpha_bar);
  const at::Tensor predicted = (x - spread * eps) / signal;
  const double signal_prev = std::sqrt(step.alpha_bar_prev);
  const double spread_prev = std::sqrt(1.0F - step.alpha_bar_prev);
  return signal_prev * predicted + spread_prev * eps;
}

}  // namespace diad
