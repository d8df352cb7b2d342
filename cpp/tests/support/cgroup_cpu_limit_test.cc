// Tests CPU limits of control groups with files in the kernel's format.
#include "support/cgroup_cpu_limit.h"

#include <fstream>
#include <string>

#include "support.h"

namespace {

namespace fs = std::filesystem;

void write(const fs::path& file, const std::string& text) {
  fs::create_directories(file.parent_path());
  std::ofstream(file) << text;
}

}  // namespace

TEST_CASE("the CPU quota is the smallest of the process's groups and their parents, rounded up") {
  const fs::path folder =
      fs::temp_directory_path() / ("diad-quota-" + std::to_string(reinterpret_cast<uintptr_t>(&folder)));
  const fs::path self = folder / "self", groups = folder / "groups";
  const auto quota = [&](const std::string& mine) {
    write(self, mine);
    return diad::cpu_quota(self, groups);
  };
  CHECK(diad::cpu_quota(folder / "none", groups) == 0);
  write(groups / "a" / "cpu.max", "max 100000\n");
  CHECK(quota("0::/a\n") == 0);
  write(groups / "a" / "cpu.max", "400000 100000\n");
  CHECK(quota("0::/a\n") == 4);
  write(groups / "a" / "b" / "cpu.max", "150000 100000\n");
  CHECK(quota("0::/a/b\n") == 2);
  CHECK(quota("0::/a/other\n") == 4);
  write(groups / "a" / "b" / "cpu.max", "1000 100000\n");
  CHECK(quota("0::/a/b\n") == 1);
  CHECK(quota("0::/../b\n") == 0);
  write(groups / "cpu.max", "300000 100000\n");  // a container sees its own group as the root
  CHECK(quota("0::/\n") == 3);

  write(groups / "cpu,cpuacct" / "x" / "cpu.cfs_quota_us", "-1\n");
  write(groups / "cpu,cpuacct" / "x" / "cpu.cfs_period_us", "100000\n");
  CHECK(quota("5:memory:/x\n4:cpu,cpuacct:/x\n") == 0);
  write(groups / "cpu,cpuacct" / "x" / "cpu.cfs_quota_us", "250000\n");
  CHECK(quota("5:memory:/x\n4:cpu,cpuacct:/x\n") == 3);
  fs::remove_all(folder);
}
