// Where the time of an image goes, operator by operator: what docs/performance.md shows for networks that
// miss their target.
#pragma once

#include <string>

namespace diad {

// From now on LibTorch tells of every operator that any thread calls, until end_operator_profile. Costs some
// microseconds a call. One profile at a time: a second start begins anew.
void start_operator_profile();

// JSON [{operator, calls, ms, gflop}], most time first. `operator` names kind, image size and kernel; ms is
// from call to return, the device's work included, operators called inside another count as part of it; what
// a recorded graph repeats is not seen; gflop counts two operations for each product of the plain sums,
// whatever the kernel needs; null where they are not counted. Empty where nothing was started.
[[nodiscard]] std::string end_operator_profile();

}  // namespace diad
