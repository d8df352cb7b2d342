// Limits the address space of the process, for tests of out-of-memory handling.
#pragma once

#if defined(__linux__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)  // sanitizers reserve address space themselves
#define DIAD_HAS_ADDRESS_LIMIT 1

#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>

#include "support.h"

// While an object exists, the system rejects mappings that would exceed `bytes` of address space.
class AddressLimit {
 public:
  explicit AddressLimit(int64_t bytes) {
    REQUIRE(getrlimit(RLIMIT_AS, &before_) == 0);
    const rlimit limit{static_cast<rlim_t>(bytes), before_.rlim_max};
    REQUIRE(setrlimit(RLIMIT_AS, &limit) == 0);
  }
  ~AddressLimit() { setrlimit(RLIMIT_AS, &before_); }
  AddressLimit(const AddressLimit&) = delete;
  AddressLimit& operator=(const AddressLimit&) = delete;

 private:
  rlimit before_{};
};

// Bytes mapped by the process.
inline int64_t address_space() {
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * sysconf(_SC_PAGESIZE);
}

#endif
