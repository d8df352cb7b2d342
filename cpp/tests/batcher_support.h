// Support for the queue tests: a runner without a model.
#pragma once

#include <chrono>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/batcher.h"

using namespace std::chrono_literals;
using diad::Batcher;
using diad::Failure;
using diad::ImageRequest;
using diad::ImageResult;
using diad::Outcome;

// Blocks the runner until the test opens it.
class Gate {
 public:
  void open() { opened_.set_value(); }
  void wait() const { future_.wait(); }

 private:
  std::promise<void> opened_;
  std::shared_future<void> future_{opened_.get_future()};
};

// Returns the seeds as scores; each batch takes ten steps.
inline std::vector<ImageResult> seeds_as_scores(std::span<const ImageRequest> batch,
                                                const diad::StepCallback& on_step) {
  for (int64_t step = 1; step <= 10; ++step) {
    if (!on_step(step, 10)) return {};
  }
  std::vector<ImageResult> results;
  for (const ImageRequest& request : batch) results.emplace_back().score = static_cast<double>(request.seed);
  return results;
}

inline std::future<Outcome> submit(Batcher& batcher, uint64_t seed, std::chrono::milliseconds timeout = 0ms,
                                   uint64_t session = 0, uint64_t* id = nullptr, int64_t priority = 0) {
  auto promise = std::make_shared<std::promise<Outcome>>();
  diad::Submission submission;
  submission.seed = seed;
  submission.timeout = timeout;
  submission.session = session;
  submission.priority = priority;
  submission.done = [promise](Outcome outcome) {
    promise->set_value(std::move(outcome));
  };  // throws if called twice
  const uint64_t given = batcher.submit(std::move(submission));
  if (id != nullptr) *id = given;
  return promise->get_future();
}

inline std::string code_of(std::future<Outcome>& future) {
  const Outcome outcome = future.get();
  const auto* failure = std::get_if<Failure>(&outcome);
  return failure == nullptr ? "done" : failure->code;
}

inline double score_of(std::future<Outcome>& future) { return std::get<ImageResult>(future.get()).score; }
