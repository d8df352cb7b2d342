// Thrown when a computation is cancelled.
#pragma once

#include <stdexcept>

namespace diad::metrics {

struct Stopped : std::runtime_error {
  Stopped() : std::runtime_error("stopped") {}
};

}  // namespace diad::metrics
