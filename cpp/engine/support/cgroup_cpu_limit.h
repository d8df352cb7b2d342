// CPU quota of this process.
#pragma once

#include <filesystem>

namespace diad {

// Returns the number of processors that the control groups of this process allow, rounded up and at least 1
// (2 for a container with --cpus=1.5); 0 without a limit. Supports cgroup versions 1 and 2, including parent
// groups. Always 0 on systems other than Linux.
//
// self: file with the groups of the process. groups: mount point of the cgroup file system.
[[nodiscard]] int cpu_quota(const std::filesystem::path& self = "/proc/self/cgroup",
                            const std::filesystem::path& groups = "/sys/fs/cgroup");

}  // namespace diad
