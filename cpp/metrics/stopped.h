// How a computation ends when nobody wants its result any more.
#pragma once

#include <stdexcept>

namespace diad::metrics {

struct Stopped : std::runtime_error {
  Stopped() : std::runtime_error("stopped") {}
};

}  // namespace diad::metrics
