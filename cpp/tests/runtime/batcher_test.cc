// Tests the queue with a runner without a model: order, batches, limits.
#include "runtime/batcher.h"

#include <thread>

#include "batcher_support.h"
#include "support.h"

TEST_CASE("queue: results match their requests, and batches are full and in order") {
  Gate gate;
  std::vector<std::vector<uint64_t>> batches;
  Batcher batcher({.max_batch = 3},
                  [&](std::span<const ImageRequest> batch, const diad::StepCallback& on_step) {
                    gate.wait();
                    auto& seeds = batches.emplace_back();
                    for (const ImageRequest& request : batch) seeds.push_back(request.seed);
                    return seeds_as_scores(batch, on_step);
                  });
  std::vector<std::future<Outcome>> pending;
  pending.push_back(submit(batcher, 0));
  while (batcher.stats().running == 0) std::this_thread::yield();
  for (uint64_t seed = 1; seed < 8; ++seed) pending.push_back(submit(batcher, seed));
  CHECK(batcher.stats().queued == 7);
  gate.open();
  for (uint64_t seed = 0; seed < 8; ++seed) CHECK(score_of(pending[seed]) == static_cast<double>(seed));
  CHECK(batches == std::vector<std::vector<uint64_t>>{{0}, {1, 2, 3}, {4, 5, 6}, {7}});
  const diad::BatcherStats stats = batcher.stats();
  CHECK(stats.completed == 8);
  CHECK(stats.batches == 4);
  CHECK(stats.mean_batch == 2);
}

TEST_CASE("queue: an incomplete batch waits up to maxDelay") {
  Batcher batcher({.max_batch = 4, .max_delay = 60'000ms}, seeds_as_scores);
  auto first = submit(batcher, 1), second = submit(batcher, 2), third = submit(batcher, 3),
       fourth = submit(batcher, 4);
  CHECK(score_of(fourth) == 4);  // full: does not wait a minute
  CHECK(batcher.stats().batches == 1);
}

TEST_CASE(
    "queue: higher priority runs first, equal priorities in submission order, cancelled images not at all") {
  Gate gate;
  std::vector<uint64_t> order;
  Batcher batcher({.max_batch = 1},
                  [&](std::span<const ImageRequest> batch, const diad::StepCallback& on_step) {
                    gate.wait();
                    order.push_back(batch.front().seed);
                    return seeds_as_scores(batch, on_step);
                  });
  std::vector<std::future<Outcome>> pending;
  pending.push_back(submit(batcher, 0));
  while (batcher.stats().running == 0) std::this_thread::yield();
  uint64_t cancelled = 0;
  for (const auto& [seed, priority] :
       std::vector<std::pair<uint64_t, int64_t>>{{1, 0}, {2, 5}, {3, 0}, {4, 9}, {5, 5}, {6, -1}}) {
    pending.push_back(submit(batcher, seed, 0ms, 0, seed == 4 ? &cancelled : nullptr, priority));
  }
  CHECK(batcher.cancel(cancelled));
  gate.open();
  for (auto& future : pending) (void)future.get();
  CHECK(order == std::vector<uint64_t>{0, 2, 5, 1, 3, 6});
}

TEST_CASE("queue: the largest available preferred size starts at once; fewer images wait up to maxDelay") {
  Gate gate;
  std::vector<size_t> sizes;
  const auto runner = [&](std::span<const ImageRequest> batch, const diad::StepCallback& on_step) {
    gate.wait();
    sizes.push_back(batch.size());
    return seeds_as_scores(batch, on_step);
  };
  Batcher batcher({.max_batch = 8, .max_delay = 1000ms, .preferred = {2, 4, 8}}, runner);
  std::vector<std::future<Outcome>> pending;
  for (uint64_t seed = 0; seed < 2; ++seed) pending.push_back(submit(batcher, seed));
  while (batcher.stats().running == 0) std::this_thread::yield();
  for (uint64_t seed = 2; seed < 9; ++seed) pending.push_back(submit(batcher, seed));
  gate.open();
  for (auto& future : pending) (void)future.get();
  CHECK(sizes == std::vector<size_t>{2, 4, 2, 1});
}

TEST_CASE("queue: construction fails if the runner cannot be created") {
  const diad::MakeBatchRunner make = []() -> diad::BatchRunner {
    throw diad::EngineError(diad::code::kBundleInvalid, "no such thing");
  };
  CHECK(contains(error_of([&] { Batcher batcher({}, make); }), "ERR_DIAD_BUNDLE_INVALID: no such thing"));
}

TEST_CASE("queue: a full queue rejects images until one is cancelled") {
  Gate gate;
  Batcher batcher({.max_batch = 1, .queue_limit = 2}, [&](auto batch, const auto& on_step) {
    gate.wait();
    return seeds_as_scores(batch, on_step);
  });
  auto running = submit(batcher, 1);
  while (batcher.stats().running == 0) std::this_thread::yield();
  uint64_t id = 0;
  auto waiting = submit(batcher, 2), last = submit(batcher, 3, 0ms, 0, &id);
  CHECK(contains(error_of([&] { (void)submit(batcher, 4); }),
                 "ERR_DIAD_QUEUE_FULL: The queue already holds 2 images"));
  CHECK(batcher.cancel(id));
  CHECK(code_of(last) == "ERR_DIAD_CANCELLED");
  auto replaced = submit(batcher, 5);
  gate.open();
  CHECK(score_of(running) == 1);
  CHECK(score_of(replaced) == 5);
}
