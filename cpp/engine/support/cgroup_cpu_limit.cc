#include "support/cgroup_cpu_limit.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>

namespace diad {

namespace {

namespace fs = std::filesystem;

// Limit of a group in processors; 0: none. Version 2 has "QUOTA PERIOD" or "max PERIOD" in one file; version
// 1 has one file for each, with -1 for no limit.
double quota_of(const fs::path& group) {
  double quota = 0, period = 0;
  if (std::ifstream file(group / "cpu.max"); file >> quota >> period && period > 0) return quota / period;
  std::ifstream quota_file(group / "cpu.cfs_quota_us"), period_file(group / "cpu.cfs_period_us");
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) return quota / period;
  return 0;
}

// The smallest limit of a group below `root` and all its parents.
double least_quota(const fs::path& root, const fs::path& group) {
  double least = 0;
  fs::path at = root;
  const auto look = [&] {
    const double quota = quota_of(at);
    if (quota > 0) least = least == 0 ? quota : std::min(least, quota);
  };
  look();
  for (const fs::path& part : group.relative_path()) {
    if (part == ".." || part.empty()) break;  // in another cgroup namespace
    at /= part;
    look();
  }
  return least;
}

}  // namespace

int cpu_quota(const fs::path& self, const fs::path& groups) {
  std::ifstream file(self);
  double least = 0;
  for (std::string line; std::getline(file, line);) {  // "0::/path", or "4:cpu,cpuacct:/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1),
                      group = line.substr(second + 1);
    const bool of_cpu = ("," + controllers + ",").find(",cpu,") != std::string::npos;
    if (!controllers.empty() && !of_cpu) continue;
    const double quota = least_quota(controllers.empty() ? groups : groups / controllers, group);
    if (quota > 0) least = least == 0 ? quota : std::min(least, quota);
  }
  return least == 0 ? 0 : std::max(1, static_cast<int>(std::ceil(std::min(least, 65536.0))));
}

}  // namespace diad
