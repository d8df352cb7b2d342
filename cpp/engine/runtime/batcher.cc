#include "runtime/batcher.h"

#include <algorithm>
#include <cmath>
#include <future>
#include <numeric>

#include "support/cancellation.h"
#include "support/engine_error.h"

namespace diad {

namespace {

constexpr size_t kRemembered = 1024;  // images in the latency distributions

constexpr std::chrono::milliseconds kBeforeTryingAgain{10};  // delay after an allocation failure

void remember(std::deque<double>& values, double value) noexcept {
  try {
    values.push_back(value);
  } catch (const std::bad_alloc&) {  // drop this value
  }
  if (values.size() > kRemembered) values.pop_front();
}

Distribution distribution(const std::deque<double>& values) {
  if (values.empty()) return {};
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  const auto at = [&](double share) {
    return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1))];
  };
  return {at(0.5), at(0.99),
          std::accumulate(sorted.begin(), sorted.end(), 0.0) / static_cast<double>(sorted.size())};
}

const Failure kClosedFailure{code::kClosed, "The model was closed before this image was scored"};

const Failure kNotFinite{code::kInternal,
                         "The score of this image is not finite: the networks overflowed; use float32 "
                         "or bfloat16, or check the model"};

}  // namespace

struct Batcher::Item {
  enum class State { kQueued, kRunning, kDone };

  uint64_t id = 0;
  Submission submission;
  Clock::time_point submitted, deadline = Clock::time_point::max();
  State state = State::kQueued;  // guarded by Batcher::mutex_
  // Serializes on_step and done; recursive, so that a callback can cancel its own image.
  std::recursive_mutex callbacks;
  bool silent = false;  // guarded by callbacks; true once done was called
};

std::pair<int64_t, uint64_t> Batcher::queue_key(const Item& item) {
  return {-item.submission.priority, item.id};
}

Batcher::Batcher(BatcherOptions options, BatchRunner runner) : options_(options), runner_(std::move(runner)) {
  worker_ = std::thread([this] { work(); });
}

Batcher::Batcher(BatcherOptions options, const MakeBatchRunner& make_runner) : options_(options) {
  const auto made = std::make_shared<std::promise<void>>();
  worker_ = std::thread([this, &make_runner, made] {
    try {
      runner_ = make_runner();
    } catch (...) {
      made->set_exception(std::current_exception());
      return;
    }
    made->set_value();
    work();
  });
  try {
    made->get_future().get();
  } catch (...) {
    worker_.join();
    throw;
  }
}

Batcher::~Batcher() { close(); }

uint64_t Batcher::submit(Submission submission) {
  auto item = std::make_shared<Item>();
  item->submission = std::move(submission);
  item->submitted = Clock::now();
  const bool timed = item->submission.timeout.count() > 0;
  if (timed) item->deadline = item->submitted + item->submission.timeout;
  const std::lock_guard lock(mutex_);
  if (closing_) throw EngineError(code::kClosed, "The model is closed");
  if (queue_.size() >= static_cast<size_t>(options_.queue_limit)) {
    throw EngineError(code::kQueueFull, "The queue already holds " + std::to_string(queue_.size()) +
                                            " images, its limit; submit more slowly or raise queueLimit");
  }
  item->id = next_id_++;
  if (timed && !watcher_.joinable()) watcher_ = std::thread([this] { watch_deadlines(); });
  pending_.emplace(item->id, item);
  try {
    queue_.emplace(queue_key(*item), item);
  } catch (...) {
    pending_.erase(item->id);
    throw;
  }
  queue_changed_.notify_one();
  if (timed) deadlines_changed_.notify_one();
  return item->id;
}

bool Batcher::cancel(uint64_t id) {
  ItemPtr item;
  {
    const std::lock_guard lock(mutex_);
    const auto found = pending_.find(id);
    if (found == pending_.end()) return false;
    item = found->second;
  }
  finish(item, Failure{code::kCancelled, "The request was cancelled"});
  return true;
}

void Batcher::close_session(uint64_t session) {
  finish_all([session](const Item& item) { return item.submission.session == session; }, kClosedFailure);
}

void Batcher::finish_all(const std::function<bool(const Item&)>& chosen, const Failure& failure) {
  std::vector<ItemPtr> items;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, item] : pending_) {
      if (chosen(*item)) items.push_back(item);
    }
  }
  std::sort(items.begin(), items.end(), [](const ItemPtr& a, const ItemPtr& b) { return a->id < b->id; });
  for (const ItemPtr& item : items) fail(item, failure);
}

void Batcher::finish(const ItemPtr& item, Outcome outcome) {
  {
    const std::lock_guard lock(mutex_);
    if (item->state == Item::State::kDone) return;
    if (item->state == Item::State::kQueued) {
      queue_.erase(queue_key(*item));  // also releases its image
    } else {
      --running_;
    }
    if (running_ == 0) is_cancelled_ = true;
    item->state = Item::State::kDone;
    pending_.erase(item->id);
    if (const auto* failure = std::get_if<Failure>(&outcome)) {
      const bool by_caller = std::string_view(failure->code) == code::kCancelled ||
                             std::string_view(failure->code) == code::kClosed;
      ++(by_caller ? cancelled_ : failed_);
    } else {
      ++completed_;
      const Timings& timings = std::get<ImageResult>(outcome).timings;
      remember(queue_ms_, timings.queue);
      remember(compute_ms_, timings.compute);
    }
  }
  const std::lock_guard lock(item->callbacks);
  item->silent = true;
  item->submission.done(std::move(outcome));
}

void Batcher::fail(const ItemPtr& item, const Failure& failure) noexcept {
  Failure told = no_memory();
  try {
    told = failure;
  } catch (const std::bad_alloc&) {
  }
  finish(item, std::move(told));
}

// Number of queued images in the next batch: the largest preferred size that the queue can fill, if any.
size_t Batcher::batch_size() const {
  const auto waiting = static_cast<int64_t>(queue_.size());
  if (waiting >= options_.max_batch) return static_cast<size_t>(options_.max_batch);
  const auto above = std::upper_bound(options_.preferred.begin(), options_.preferred.end(), waiting);
  return static_cast<size_t>(above == options_.preferred.begin() ? waiting : *std::prev(above));
}

Batcher::Clock::time_point Batcher::oldest() const {
  auto time = Clock::time_point::max();
  for (const auto& [place, item] : queue_) time = std::min(time, item->submitted);
  return time;
}

std::vector<Batcher::ItemPtr> Batcher::next_batch() {
  std::unique_lock lock(mutex_);
  const auto enough =
      static_cast<size_t>(options_.preferred.empty() ? options_.max_batch : options_.preferred.front());
  std::vector<ItemPtr> batch;
  while (batch.empty()) {
    queue_changed_.wait(lock, [this] { return closing_ || !queue_.empty(); });
    if (closing_) return {};
    if (options_.max_delay.count() > 0) {
      queue_changed_.wait_until(lock, oldest() + options_.max_delay,
                                [&] { return closing_ || queue_.size() >= enough; });
      if (closing_) return {};
    }
    batch.reserve(batch_size());                          // can throw, so before any image is taken
    for (size_t size = batch_size(); size > 0; --size) {  // 0 if all were cancelled meanwhile
      ItemPtr item = std::move(queue_.begin()->second);
      queue_.erase(queue_.begin());
      item->state = Item::State::kRunning;
      ++running_;
      batch.push_back(std::move(item));
    }
  }
  ++batches_;
  batched_ += batch.size();
  is_cancelled_ = false;
  return batch;
}

void Batcher::work() {
  for (;;) {
    std::vector<ItemPtr> batch;
    try {
      batch = next_batch();
      if (batch.empty()) return;
      run(batch);
    } catch (const std::bad_alloc&) {
      for (const ItemPtr& item : batch) fail(item, no_memory());
      if (batch.empty()) std::this_thread::sleep_for(kBeforeTryingAgain);
    }
  }
}

void Batcher::run(std::span<const ItemPtr> batch) {
  const auto started = Clock::now();
  const auto on_step = [&](int64_t done, int64_t total) {
    bool wanted = false;
    for (const ItemPtr& item : batch) {
      const std::lock_guard lock(item->callbacks);
      if (item->silent) continue;
      wanted = true;
      if (item->submission.on_step) item->submission.on_step(done, total);
    }
    return wanted;
  };
  try {
    const CancellationScope scope([this] { return is_cancelled_.load(std::memory_order_relaxed); });
    std::vector<ImageRequest> requests;
    for (const ItemPtr& item : batch) {
      const Submission& submission = item->submission;
      requests.push_back({&submission.frame, submission.seed, submission.wanted, submission.class_name,
                          submission.calibration});
    }
    std::vector<ImageResult> results = runner_(requests, on_step);
    for (size_t i = 0; i < results.size(); ++i) {
      if (!std::isfinite(results[i].score)) {  // a NaN score would pass as normal: it exceeds no threshold
        finish(batch[i], kNotFinite);
        continue;
      }
      results[i].timings.queue =
          std::chrono::duration<double, std::milli>(started - batch[i]->submitted).count();
      finish(batch[i], std::move(results[i]));
    }
  } catch (...) {
    const Failure failure = describe_current_failure();
    if (std::string_view(failure.code) == code::kOutOfMemory && batch.size() > 1) {
      run(batch.first(batch.size() / 2));  // half as many images might fit
      run(batch.subspan(batch.size() / 2));
      return;
    }
    for (const ItemPtr& item : batch) fail(item, failure);
  }
}

void Batcher::watch_deadlines() {
  std::unique_lock lock(mutex_);
  while (!closing_) {
    auto earliest = Clock::time_point::max();
    for (const auto& [id, item] : pending_) earliest = std::min(earliest, item->deadline);
    if (earliest == Clock::time_point::max()) {
      deadlines_changed_.wait(lock);
      continue;
    }
    if (Clock::now() < earliest) {
      deadlines_changed_.wait_until(lock, earliest);
      continue;
    }
    lock.unlock();
    const auto now = Clock::now();
    try {
      finish_all([now](const Item& item) { return item.deadline <= now; },
                 Failure{code::kTimeout, "The request timed out"});
    } catch (const std::bad_alloc&) {
      std::this_thread::sleep_for(kBeforeTryingAgain);
    }
    lock.lock();
  }
}

BatcherStats Batcher::stats() const {
  const std::lock_guard lock(mutex_);
  BatcherStats stats{queue_.size(),
                     running_,
                     completed_,
                     failed_,
                     cancelled_,
                     batches_,
                     0,
                     distribution(queue_ms_),
                     distribution(compute_ms_)};
  if (batches_ > 0) stats.mean_batch = static_cast<double>(batched_) / static_cast<double>(batches_);
  return stats;
}

void Batcher::close() {
  const std::lock_guard once(close_mutex_);
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    queue_changed_.notify_all();
    deadlines_changed_.notify_all();
  }
  finish_all([](const Item&) { return true; }, kClosedFailure);
  if (worker_.joinable()) worker_.join();
  if (watcher_.joinable()) watcher_.join();
}

}  // namespace diad
