// The queue with a runner that is no model: order, batches, limits, cancellation, deadlines, shutdown.
#include "batcher.h"

#include <atomic>
#include <future>
#include <map>

#include "interruption.h"
#include "support.h"

using namespace std::chrono_literals;
using diad::Batcher;
using diad::Failure;
using diad::Outcome;
using diad::PictureRequest;
using diad::PictureResult;

namespace {

// A gate the runner waits at, so that the tests decide when a batch goes on.
class Gate {
 public:
  void open() { opened_.set_value(); }
  void wait() const { future_.wait(); }

 private:
  std::promise<void> opened_;
  std::shared_future<void> future_{opened_.get_future()};
};

// Scores are the seeds; each batch takes ten steps.
std::vector<PictureResult> seeds_as_scores(std::span<const PictureRequest> batch, const diad::StepCallback& on_step) {
  for (int64_t step = 1; step <= 10; ++step) {
    if (!on_step(step, 10)) return {};
  }
  std::vector<PictureResult> results;
  for (const PictureRequest& request : batch) results.emplace_back().score = static_cast<double>(request.seed);
  return results;
}

std::future<Outcome> submit(Batcher& batcher, uint64_t seed, std::chrono::milliseconds timeout = 0ms, uint64_t session = 0,
                            uint64_t* id = nullptr, int64_t priority = 0, const diad::ExperimentalOptions& experimental = {}) {
  auto promise = std::make_shared<std::promise<Outcome>>();
  diad::Submission submission;
  submission.seed = seed;
  submission.timeout = timeout;
  submission.session = session;
  submission.priority = priority;
  submission.experimental = experimental;
  submission.done = [promise](Outcome outcome) { promise->set_value(std::move(outcome)); };  // throws when called twice
  const uint64_t given = batcher.submit(std::move(submission));
  if (id != nullptr) *id = given;
  return promise->get_future();
}

std::string code_of(std::future<Outcome>& future) {
  const Outcome outcome = future.get();
  const auto* failure = std::get_if<Failure>(&outcome);
  return failure == nullptr ? "done" : failure->code;
}

double score_of(std::future<Outcome>& future) { return std::get<PictureResult>(future.get()).score; }

}  // namespace

TEST_CASE("queue: results go to their requests, batches are full and in order") {
  Gate gate;
  std::vector<std::vector<uint64_t>> batches;
  Batcher batcher({.max_batch = 3}, [&](std::span<const PictureRequest> batch, const diad::StepCallback& on_step) {
    gate.wait();
    auto& seeds = batches.emplace_back();
    for (const PictureRequest& request : batch) seeds.push_back(request.seed);
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

TEST_CASE("queue: a batch waits for company up to maxDelay") {
  Batcher batcher({.max_batch = 4, .max_delay = 2000ms}, seeds_as_scores);
  auto first = submit(batcher, 1), second = submit(batcher, 2), third = submit(batcher, 3), fourth = submit(batcher, 4);
  CHECK(score_of(fourth) == 4);  // full: nobody waited two seconds
  CHECK(batcher.stats().batches == 1);
}

TEST_CASE("queue: what is more urgent goes first, equals in their order; a cancelled one leaves its place") {
  Gate gate;
  std::vector<uint64_t> order;
  Batcher batcher({.max_batch = 1}, [&](std::span<const PictureRequest> batch, const diad::StepCallback& on_step) {
    gate.wait();
    order.push_back(batch.front().seed);
    return seeds_as_scores(batch, on_step);
  });
  std::vector<std::future<Outcome>> pending;
  pending.push_back(submit(batcher, 0));
  while (batcher.stats().running == 0) std::this_thread::yield();
  uint64_t cancelled = 0;
  for (const auto& [seed, priority] : std::vector<std::pair<uint64_t, int64_t>>{{1, 0}, {2, 5}, {3, 0}, {4, 9}, {5, 5}, {6, -1}}) {
    pending.push_back(submit(batcher, seed, 0ms, 0, seed == 4 ? &cancelled : nullptr, priority));
  }
  CHECK(batcher.cancel(cancelled));
  gate.open();
  for (auto& future : pending) (void)future.get();
  CHECK(order == std::vector<uint64_t>{0, 2, 5, 1, 3, 6});
}

TEST_CASE("queue: the largest preferred size that can be formed is taken at once; fewer wait up to maxDelay") {
  Gate gate;
  std::vector<size_t> sizes;
  const auto runner = [&](std::span<const PictureRequest> batch, const diad::StepCallback& on_step) {
    gate.wait();
    sizes.push_back(batch.size());
    return seeds_as_scores(batch, on_step);
  };
  Batcher batcher({.max_batch = 8, .max_delay = 50ms, .preferred = {2, 4, 8}}, runner);
  std::vector<std::future<Outcome>> pending;
  for (uint64_t seed = 0; seed < 2; ++seed) pending.push_back(submit(batcher, seed));
  while (batcher.stats().running == 0) std::this_thread::yield();
  for (uint64_t seed = 2; seed < 9; ++seed) pending.push_back(submit(batcher, seed));
  gate.open();
  for (auto& future : pending) (void)future.get();
  CHECK(sizes == std::vector<size_t>{2, 4, 2, 1});
}

TEST_CASE("queue: a runner that cannot be made fails the queue's construction") {
  const diad::MakeBatchRunner make = []() -> diad::BatchRunner { throw diad::EngineError(diad::code::kBundleInvalid, "no such thing"); };
  CHECK(contains(error_of([&] { Batcher batcher({}, make); }), "ERR_DIAD_BUNDLE_INVALID: no such thing"));
}

TEST_CASE("queue: pictures with other experimental options are computed apart") {
  Gate gate;
  std::vector<std::vector<uint64_t>> batches;
  Batcher batcher({.max_batch = 4}, [&](std::span<const PictureRequest> batch, const diad::StepCallback& on_step) {
    gate.wait();
    auto& seeds = batches.emplace_back();
    for (const PictureRequest& request : batch) {
      seeds.push_back(request.seed);
      CHECK(request.experimental == batch.front().experimental);
    }
    return seeds_as_scores(batch, on_step);
  });
  diad::ExperimentalOptions other, third;
  other.sampler.start_noise = diad::StartNoise::kNone;
  third.compare_with = diad::CompareWith::kAutoencoder;
  std::vector<std::future<Outcome>> pending;
  pending.push_back(submit(batcher, 0));
  while (batcher.stats().running == 0) std::this_thread::yield();
  const diad::ExperimentalOptions kinds[] = {{}, other, {}, other, third, other};
  for (uint64_t seed = 1; seed <= 6; ++seed) pending.push_back(submit(batcher, seed, 0ms, 0, nullptr, 0, kinds[seed - 1]));
  gate.open();
  for (uint64_t seed = 0; seed <= 6; ++seed) CHECK(score_of(pending[seed]) == static_cast<double>(seed));
  CHECK(batches == std::vector<std::vector<uint64_t>>{{0}, {1, 3}, {2, 4}, {5}, {6}});
  CHECK(batcher.stats().batches == 5);
}

TEST_CASE("queue: full is an error, and the place comes back") {
  Gate gate;
  Batcher batcher({.max_batch = 1, .queue_limit = 2}, [&](auto batch, const auto& on_step) {
    gate.wait();
    return seeds_as_scores(batch, on_step);
  });
  auto running = submit(batcher, 1);
  while (batcher.stats().running == 0) std::this_thread::yield();
  uint64_t id = 0;
  auto waiting = submit(batcher, 2), last = submit(batcher, 3, 0ms, 0, &id);
  CHECK(contains(error_of([&] { (void)submit(batcher, 4); }), "ERR_DIAD_QUEUE_FULL: The queue already holds 2 pictures"));
  CHECK(batcher.cancel(id));
  CHECK(code_of(last) == "ERR_DIAD_CANCELLED");
  auto replaced = submit(batcher, 5);
  gate.open();
  CHECK(score_of(running) == 1);
  CHECK(score_of(replaced) == 5);
}

TEST_CASE("queue: cancelled pictures answer at once, a batch nobody wants stops between steps") {
  Gate gate;
  std::atomic<int> steps{0};
  Batcher batcher({.max_batch = 2}, [&](std::span<const PictureRequest> batch, const diad::StepCallback& on_step) {
    gate.wait();
    for (int64_t step = 1; step <= 10; ++step) {
      ++steps;
      if (!on_step(step, 10)) return std::vector<PictureResult>{};
    }
    return std::vector<PictureResult>(batch.size());
  });
  uint64_t id = 0;
  auto cancelled = submit(batcher, 1, 0ms, 0, &id);
  while (batcher.stats().running == 0) std::this_thread::yield();
  CHECK(batcher.cancel(id));
  CHECK(code_of(cancelled) == "ERR_DIAD_CANCELLED");  // although its batch still runs
  CHECK_FALSE(batcher.cancel(id));
  CHECK_FALSE(batcher.cancel(12345));
  gate.open();
  auto next = submit(batcher, 2);
  CHECK(code_of(next) == "done");
  CHECK(steps == 11);  // one step of the unwanted batch, ten of the next
  CHECK(batcher.stats().cancelled == 1);
}

TEST_CASE("queue: a batch nobody wants stops inside a step, one that somebody still wants goes on") {
  std::atomic<int> started{0}, interrupted{0};
  Batcher batcher({.max_batch = 2, .max_delay = 2000ms}, [&](std::span<const PictureRequest> batch, const diad::StepCallback& on_step) {
    if (++started > 1) return seeds_as_scores(batch, on_step);
    try {
      for (;;) diad::check_interruption();  // a step that never ends by itself
    } catch (const diad::Interrupted&) {
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
  CHECK(score_of(third) == 3);  // what was said about the last batch is no longer true of this one
  CHECK(interrupted == 1);
  CHECK(code_of(first) == "ERR_DIAD_CANCELLED");
  CHECK(code_of(second) == "ERR_DIAD_CANCELLED");
}

TEST_CASE("queue: closing does not wait for a step that would not end") {
  std::atomic<bool> started{false};
  Batcher batcher({.max_batch = 1}, [&](std::span<const PictureRequest>, const diad::StepCallback&) -> std::vector<PictureResult> {
    started = true;
    for (;;) diad::check_interruption();
  });
  auto pending = submit(batcher, 1);
  while (!started) std::this_thread::yield();
  batcher.close();
  CHECK(code_of(pending) == "ERR_DIAD_CLOSED");
}

TEST_CASE("interruption: scopes nest, and a thread without one is never interrupted") {
  diad::check_interruption();
  bool inner_unwanted = false;
  const diad::InterruptionScope outer([] { return false; });
  {
    const diad::InterruptionScope inner([&] { return inner_unwanted; });
    diad::check_interruption();
    inner_unwanted = true;
    CHECK_THROWS_AS(diad::check_interruption(), diad::Interrupted);
    std::thread([] { diad::check_interruption(); }).join();
    std::thread([unwanted = diad::what_interrupts()] {
      const diad::InterruptionScope handed_over(unwanted);
      CHECK_THROWS_AS(diad::check_interruption(), diad::Interrupted);
    }).join();
  }
  diad::check_interruption();
}

TEST_CASE("queue: deadlines pass while waiting and while running") {
  Gate gate;
  Batcher batcher({.max_batch = 1}, [&](auto batch, const auto& on_step) {
    gate.wait();
    return seeds_as_scores(batch, on_step);
  });
  auto running = submit(batcher, 1, 20ms);
  while (batcher.stats().running == 0) std::this_thread::yield();
  auto waiting = submit(batcher, 2, 5ms), patient = submit(batcher, 3, 60'000ms);
  CHECK(code_of(waiting) == "ERR_DIAD_TIMEOUT");
  CHECK(code_of(running) == "ERR_DIAD_TIMEOUT");
  gate.open();
  CHECK(score_of(patient) == 3);
  CHECK(batcher.stats().failed == 2);
}

TEST_CASE("queue: closing a session leaves the others, closing the queue leaves nobody waiting") {
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
  Batcher batcher({.max_batch = 1}, [](std::span<const PictureRequest> batch, const diad::StepCallback& on_step) {
    if (batch[0].seed == 1) throw std::runtime_error("the network is odd\nand its trace is long");
    return seeds_as_scores(batch, on_step);
  });
  auto bad = submit(batcher, 1), good = submit(batcher, 2);
  const Outcome outcome = bad.get();
  CHECK(std::get<Failure>(outcome).code == std::string("ERR_DIAD_INTERNAL"));
  CHECK(std::get<Failure>(outcome).message == "the network is odd");
  CHECK(score_of(good) == 2);
}

TEST_CASE("queue: a batch that does not fit into memory is tried in halves") {
  std::vector<size_t> sizes;
  Gate gate;
  Batcher batcher({.max_batch = 4}, [&](std::span<const PictureRequest> batch, const diad::StepCallback& on_step) {
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

TEST_CASE("queue: every submission is answered exactly once under a storm of cancels") {
  Batcher batcher({.max_batch = 5, .queue_limit = 100000}, seeds_as_scores);
  std::vector<std::future<Outcome>> pending;
  std::vector<uint64_t> ids(3000);
  for (size_t i = 0; i < ids.size(); ++i) pending.push_back(submit(batcher, i, i % 7 == 0 ? 1ms : 0ms, 0, &ids[i]));
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

TEST_CASE("failures: the words of LibTorch's and oneDNN's allocators mean out of memory, other words do not") {
  const auto code_of = [](const char* words) { return std::string(diad::describe_failure(std::runtime_error(words)).code); };
  for (const char* words :
       {"[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory", "could not create a primitive",
        "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most recent call last):\n"
        "RuntimeError: std::bad_alloc"}) {
    CAPTURE(words);
    CHECK(code_of(words) == "ERR_DIAD_OUT_OF_MEMORY");
  }
  CHECK(std::string(diad::describe_failure(std::bad_alloc()).code) == "ERR_DIAD_OUT_OF_MEMORY");
  const std::system_error no_thread(std::make_error_code(std::errc::resource_unavailable_try_again));
  CHECK(std::string(diad::describe_failure(no_thread).code) == "ERR_DIAD_OUT_OF_MEMORY");
  CHECK(code_of("The size of tensor a (3) must match the size of tensor b (4)") == "ERR_DIAD_INTERNAL");
}
