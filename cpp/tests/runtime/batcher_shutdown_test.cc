// Tests the queue with a runner without a model: cancellation, timeouts, shutdown, failures.
#include <atomic>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "batcher_support.h"
#include "support.h"
#include "support/cancellation.h"

TEST_CASE("queue: cancelled images complete at once and a fully cancelled batch stops between steps") {
  Gate gate;
  std::atomic<int> steps{0};
  Batcher batcher({.max_batch = 2},
                  [&](std::span<const ImageRequest> batch, const diad::StepCallback& on_step) {
                    gate.wait();
                    for (int64_t step = 1; step <= 10; ++step) {
                      ++steps;
                      if (!on_step(step, 10)) return std::vector<ImageResult>{};
                    }
                    return std::vector<ImageResult>(batch.size());
                  });
  uint64_t id = 0;
  auto cancelled = submit(batcher, 1, 0ms, 0, &id);
  while (batcher.stats().running == 0) std::this_thread::yield();
  CHECK(batcher.cancel(id));
  CHECK(code_of(cancelled) == "ERR_DIAD_CANCELLED");  // although its batch is still running
  CHECK_FALSE(batcher.cancel(id));
  CHECK_FALSE(batcher.cancel(12345));
  gate.open();
  auto next = submit(batcher, 2);
  CHECK(code_of(next) == "done");
  CHECK(steps == 11);  // one step of the cancelled batch, ten of the next
  CHECK(batcher.stats().cancelled == 1);
}

TEST_CASE("queue: a batch stops inside a step only when all its images are cancelled") {
  std::atomic<int> started{0}, interrupted{0};
  Batcher batcher({.max_batch = 2, .max_delay = 60'000ms},
                  [&](std::span<const ImageRequest> batch, const diad::StepCallback& on_step) {
                    if (++started > 1) return seeds_as_scores(batch, on_step);
                    try {
                      for (;;) diad::check_cancelled();  // a step that never ends on its own
                    } catch (const diad::Cancelled&) {
                      ++interrupted;
                      throw;
                    }
                  });
  uint64_t first_id = 0, second_id = 0;
  auto first = submit(batcher, 1, 0ms, 0, &first_id), second = submit(batcher, 2, 0ms, 0, &second_id);
  while (started == 0) std::this_thread::yield();
  CHECK(batcher.cancel(first_id));
  std::this_thread::sleep_for(20ms);
  CHECK(interrupted == 0);
  CHECK(batcher.cancel(second_id));
  auto third = submit(batcher, 3), fourth = submit(batcher, 4);
  CHECK(score_of(third) == 3);  // the cancellation of the previous batch does not apply to this one
  CHECK(interrupted == 1);
  CHECK(code_of(first) == "ERR_DIAD_CANCELLED");
  CHECK(code_of(second) == "ERR_DIAD_CANCELLED");
}

TEST_CASE("queue: closing stops an endless step") {
  std::atomic<bool> started{false};
  Batcher batcher({.max_batch = 1},
                  [&](std::span<const ImageRequest>, const diad::StepCallback&) -> std::vector<ImageResult> {
                    started = true;
                    for (;;) diad::check_cancelled();
                  });
  auto pending = submit(batcher, 1);
  while (!started) std::this_thread::yield();
  batcher.close();
  CHECK(code_of(pending) == "ERR_DIAD_CLOSED");
}

TEST_CASE("queue: timeouts apply to waiting and running images") {
  Gate gate;
  std::atomic<bool> started{false};
  Batcher batcher({.max_batch = 1}, [&](auto batch, const auto& on_step) {
    started = true;
    gate.wait();
    return seeds_as_scores(batch, on_step);
  });
  uint64_t passed = 0;
  std::future<Outcome> running;
  for (auto timeout = 20ms; !started; timeout *= 2) {  // a busy machine can take longer than that to start
    running = submit(batcher, 1, timeout);
    CHECK(code_of(running) == "ERR_DIAD_TIMEOUT");
    ++passed;
  }
  auto waiting = submit(batcher, 2, 5ms), patient = submit(batcher, 3, 60'000ms);
  CHECK(code_of(waiting) == "ERR_DIAD_TIMEOUT");
  gate.open();
  CHECK(score_of(patient) == 3);
  CHECK(batcher.stats().failed == passed + 1);
}

TEST_CASE("queue: closing a session keeps other sessions, closing the queue completes all images") {
  Gate gate;
  Batcher batcher({.max_batch = 1}, [&](auto batch, const auto& on_step) {
    gate.wait();
    return seeds_as_scores(batch, on_step);
  });
  auto first = submit(batcher, 1, 0ms, 1);
  while (batcher.stats().running == 0) std::this_thread::yield();
  auto second = submit(batcher, 2, 0ms, 1), other = submit(batcher, 3, 0ms, 2);
  batcher.close_session(1);
  CHECK(code_of(first) == "ERR_DIAD_CLOSED");
  CHECK(code_of(second) == "ERR_DIAD_CLOSED");
  gate.open();
  CHECK(score_of(other) == 3);
  auto last = submit(batcher, 4, 0ms, 2);
  batcher.close();
  batcher.close();
  const std::string code = code_of(last);
  CHECK((code == "ERR_DIAD_CLOSED" || code == "done"));
  CHECK(contains(error_of([&] { (void)submit(batcher, 5); }), "ERR_DIAD_CLOSED"));
}

TEST_CASE("queue: a failing runner fails its batch only") {
  Batcher batcher({.max_batch = 1},
                  [](std::span<const ImageRequest> batch, const diad::StepCallback& on_step) {
                    if (batch[0].seed == 1)
                      throw std::runtime_error("the network is odd\nand its trace is long");
                    return seeds_as_scores(batch, on_step);
                  });
  auto bad = submit(batcher, 1), good = submit(batcher, 2);
  const Outcome outcome = bad.get();
  CHECK(std::get<Failure>(outcome).code == std::string("ERR_DIAD_INTERNAL"));
  CHECK(std::get<Failure>(outcome).message == "the network is odd");
  CHECK(score_of(good) == 2);
}

TEST_CASE("queue: a batch that runs out of memory is retried in halves") {
  std::vector<size_t> sizes;
  Gate gate;
  Batcher batcher({.max_batch = 4},
                  [&](std::span<const ImageRequest> batch, const diad::StepCallback& on_step) {
                    gate.wait();
                    sizes.push_back(batch.size());
                    if (batch.size() > 1) throw std::bad_alloc();
                    if (batch[0].seed == 3) throw std::bad_alloc();
                    return seeds_as_scores(batch, on_step);
                  });
  auto first = submit(batcher, 0);
  while (batcher.stats().running == 0) std::this_thread::yield();
  std::vector<std::future<Outcome>> pending;
  for (uint64_t seed = 1; seed <= 4; ++seed) pending.push_back(submit(batcher, seed));
  gate.open();
  CHECK(score_of(pending[0]) == 1);
  CHECK(score_of(pending[1]) == 2);
  CHECK(code_of(pending[2]) == "ERR_DIAD_OUT_OF_MEMORY");
  CHECK(score_of(pending[3]) == 4);
  CHECK(sizes == std::vector<size_t>{1, 4, 2, 1, 1, 2, 1, 1});
}

TEST_CASE("queue: every submission completes exactly once under many concurrent cancellations") {
  Batcher batcher({.max_batch = 5, .queue_limit = 100000}, seeds_as_scores);
  std::vector<std::future<Outcome>> pending;
  std::vector<uint64_t> ids(3000);
  for (size_t i = 0; i < ids.size(); ++i)
    pending.push_back(submit(batcher, i, i % 7 == 0 ? 1ms : 0ms, 0, &ids[i]));
  std::thread canceller([&] {
    for (size_t i = 0; i < ids.size(); i += 3) batcher.cancel(ids[i]);
  });
  std::map<std::string, int> codes;
  for (auto& future : pending) ++codes[code_of(future)];
  canceller.join();
  int answered = 0;
  for (const auto& [code, count] : codes) answered += count;
  CHECK(answered == 3000);
  const diad::BatcherStats stats = batcher.stats();
  CHECK(stats.queued + stats.running == 0);
  CHECK(stats.completed + stats.failed + stats.cancelled == 3000);
}

TEST_CASE("queue: cancelling a queued image releases it at once") {
  Gate gate;
  Batcher batcher({.max_batch = 1},
                  [&](std::span<const ImageRequest> batch, const diad::StepCallback& on_step) {
                    gate.wait();
                    return seeds_as_scores(batch, on_step);
                  });
  std::future<Outcome> running = submit(batcher, 1);
  while (batcher.stats().running == 0) std::this_thread::sleep_for(1ms);
  const auto held = std::make_shared<int>(0);  // lives as long as the submission
  diad::Submission submission;
  std::promise<Outcome> cancelled;
  submission.done = [&cancelled, held](Outcome outcome) { cancelled.set_value(std::move(outcome)); };
  const uint64_t id = batcher.submit(std::move(submission));
  CHECK(held.use_count() > 1);
  CHECK(batcher.cancel(id));
  CHECK(held.use_count() == 1);
  CHECK(batcher.stats().queued == 0);
  gate.open();
  CHECK(code_of(running) == "done");
}

TEST_CASE("queue: a non-finite score fails only its own image") {
  Gate gate;
  Batcher batcher({.max_batch = 3},
                  [&](std::span<const ImageRequest> batch, const diad::StepCallback& on_step) {
                    gate.wait();
                    std::vector<ImageResult> results = seeds_as_scores(batch, on_step);
                    for (ImageResult& result : results) {
                      if (result.score == 2) result.score = std::numeric_limits<double>::quiet_NaN();
                      if (result.score == 3) result.score = std::numeric_limits<double>::infinity();
                    }
                    return results;
                  });
  std::future<Outcome> first = submit(batcher, 9);
  std::vector<std::future<Outcome>> others;
  for (const uint64_t seed : {1, 2, 3}) others.push_back(submit(batcher, seed));
  gate.open();
  CHECK(code_of(first) == "done");
  CHECK(code_of(others[0]) == "done");
  for (const size_t i : {1, 2}) {
    const Outcome outcome = others[i].get();
    const auto* const failure = std::get_if<Failure>(&outcome);
    REQUIRE(failure != nullptr);
    CHECK(std::string(failure->code) == "ERR_DIAD_INTERNAL");
    CHECK(contains(failure->message, "is not finite"));
  }
}
