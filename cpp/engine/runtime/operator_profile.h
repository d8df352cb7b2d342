// Per-operator timing of the networks.
#pragma once

#include <string>

namespace diad {

// Times every operator call of all threads until end_operator_profile. Costs some microseconds per call.
// There is one profile per process: a second start resets it.
void start_operator_profile();

// Stops the profile and returns JSON [{operator, calls, ms, gflop}], longest time first; empty if no profile
// was started. `operator` names the kind, image size and kernel. ms runs from call to return, including the
// device's work and nested operators. Replayed CUDA graphs are not included. gflop counts two operations per
// multiply-add of the direct algorithm, whichever kernel runs; null if unknown.
[[nodiscard]] std::string end_operator_profile();

}  // namespace diad
