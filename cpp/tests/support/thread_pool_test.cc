// Tests loops on the thread pool.
#include "support/thread_pool.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace diad;

namespace {

// Counts the visits of each index of a loop; each should be 1.
std::vector<int> visits(int64_t count, int64_t grain) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
  parallel_for(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
  });
  return {seen.begin(), seen.end()};
}

}  // namespace

TEST_CASE("every index is visited once, with and without worker threads, for every grain") {
  for (const int count : {0, 1, 3, 7}) {
    ThreadPool pool(count);
    CHECK(pool.count() == count);
    const ThreadPoolScope sharing(pool);
    for (const int64_t length : {0, 1, 2, 5, 64, 1000}) {
      for (const int64_t grain : {0, 1, 3, 100}) {
        CAPTURE(count);
        CAPTURE(length);
        CAPTURE(grain);
        CHECK(visits(length, grain) == std::vector<int>(static_cast<size_t>(length), 1));
      }
    }
  }
  CHECK(visits(10, 1) == std::vector<int>(10, 1));  // after the scope: on this thread only
}

TEST_CASE("many consecutive short loops visit every index once") {
  ThreadPool pool(3);
  const ThreadPoolScope sharing(pool);
  int64_t sum = 0;
  for (int round = 0; round < 20000; ++round) {
    int64_t parts[8] = {};
    parallel_for(8, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) parts[i] += round + i;
    });
    for (const int64_t part : parts) sum += part;
  }
  CHECK(sum == int64_t{8} * 19999 * 20000 / 2 + int64_t{28} * 20000);
}

TEST_CASE("worker threads run part of a loop") {
  ThreadPool pool(1);
  const ThreadPoolScope sharing(pool);
  std::atomic<bool> elsewhere{false};
  const auto owner = std::this_thread::get_id();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!elsewhere && std::chrono::steady_clock::now() < end) {
    parallel_for(2, 1, [&](int64_t, int64_t) {
      if (std::this_thread::get_id() != owner) elsewhere = true;
      else std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
  }
  CHECK(elsewhere);
}

TEST_CASE("an exception of a loop body is rethrown on the owner, and the next loop is complete") {
  ThreadPool pool(2);
  const ThreadPoolScope sharing(pool);
  for (int64_t bad = 0; bad < 60; ++bad) {
    std::string message;
    try {
      parallel_for(60, 1, [&](int64_t begin, int64_t end) {
        if (begin <= bad && bad < end) throw std::runtime_error("at " + std::to_string(bad));
      });
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    CHECK(message == "at " + std::to_string(bad));
    CHECK(visits(60, 1) == std::vector<int>(60, 1));
  }
}

TEST_CASE("a nested loop runs on the thread that calls it") {
  ThreadPool pool(2);
  const ThreadPoolScope sharing(pool);
  std::atomic<int64_t> total{0};
  parallel_for(12, 1, [&](int64_t begin, int64_t end) {
    const auto here = std::this_thread::get_id();
    for (int64_t i = begin; i < end; ++i) {
      parallel_for(10, 1, [&](int64_t first, int64_t last) {
        if (std::this_thread::get_id() == here) total += last - first;
      });
    }
  });
  CHECK(total == 120);
}

TEST_CASE("a delayed worker is waited for, then not used for a while, then used again") {
  ThreadPool pool(1);
  const ThreadPoolScope sharing(pool);
  const auto owner = std::this_thread::get_id();
  // Both threads run part of the loop: the worker joins while the owner waits, and stays longer than the
  // owner.
  const auto helped = [&](std::chrono::milliseconds late) {
    std::atomic<bool> came{false};
    parallel_for(2, 1, [&](int64_t, int64_t) {
      if (std::this_thread::get_id() != owner) {
        came = true;
        std::this_thread::sleep_for(late);
      } else {
        for (int i = 0; i < 100 && !came; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    });
    return came.load();
  };
  const auto helped_in_time = [&](std::chrono::milliseconds late) {
    for (int i = 0; i < 100; ++i) {
      if (helped(late)) return true;
    }
    return false;
  };
  const std::chrono::milliseconds at_once{0}, late{200};
  REQUIRE(helped_in_time(at_once));
  REQUIRE(helped_in_time(late));
  CHECK_FALSE(helped(at_once));
  std::this_thread::sleep_for(11 * late);  // ten times the delay
  CHECK(helped_in_time(at_once));
}

TEST_CASE("pools of several threads are independent") {
  std::vector<std::thread> owners;
  std::atomic<int64_t> wrong{0};
  for (int i = 0; i < 3; ++i) {
    owners.emplace_back([&] {
      ThreadPool pool(2);
      const ThreadPoolScope sharing(pool);
      for (int round = 0; round < 500; ++round) {
        if (visits(40, 1) != std::vector<int>(40, 1)) ++wrong;
      }
    });
  }
  for (std::thread& owner : owners) owner.join();
  CHECK(wrong == 0);
}
