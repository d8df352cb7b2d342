// How much of the processors the system lets this process use.
#pragma once

#include <filesystem>

namespace diad {

// Processors that the control groups of this process grant it, rounded up and at least 1 (a container started
// with --cpus=1.5: 2); 0 where they set no limit. Groups of both versions, and those above them. Linux;
// elsewhere 0.
//
// self: the process's groups, as /proc/self/cgroup. groups: where their file system is mounted.
[[nodiscard]] int cpu_quota(const std::filesystem::path& self = "/proc/self/cgroup",
                            const std::filesystem::path& groups = "/sys/fs/cgroup");

}  // namespace diad
