// The queue in front of the inference thread: bounded, by priority, batching, cancellation, deadlines,
// shutdown.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "pipeline/pipeline.h"
#include "support/error_translation.h"

namespace diad {

struct BatcherOptions {
  int64_t max_batch = 1;                   // images, >= 1
  std::chrono::milliseconds max_delay{0};  // how long a batch that is not full waits for more
  int64_t queue_limit = 1024;              // waiting images, >= 1
  // Batch sizes that are taken as soon as so many wait, the largest first; ascending, each from 1 to
  // max_batch. Only while none can be formed does max_delay run. Empty: max_batch alone.
  std::vector<int64_t> preferred = {};
};

using Outcome = std::variant<ImageResult, Failure>;

struct Submission {
  Frame frame;
  uint64_t seed = 0;
  Wanted wanted;
  std::string class_name;                // see ImageRequest
  CalibrationSink calibration;           // likewise
  int64_t priority = 0;                  // larger goes first; equals in the order of submission
  std::chrono::milliseconds timeout{0};  // from submit; 0: none
  uint64_t session = 0;                  // whose request this is, for close_session
  std::function<void(Outcome)> done;  // called exactly once, from any thread, without locks of the queue held
  std::function<void(int64_t, int64_t)>
      on_step;  // may be empty; called from the inference thread, never after done
};

// Percentiles and mean over the last images, milliseconds.
struct Distribution {
  double p50 = 0, p99 = 0, mean = 0;
};

struct BatcherStats {
  uint64_t queued = 0, running = 0, completed = 0, failed = 0, cancelled = 0, batches = 0;
  double mean_batch = 0;
  Distribution queue_ms, compute_ms;
};

using BatchRunner =
    std::function<std::vector<ImageResult>(std::span<const ImageRequest>, const StepCallback&)>;
using MakeBatchRunner = std::function<BatchRunner()>;

class Batcher {
 public:
  Batcher(BatcherOptions options, BatchRunner runner);
  // `make_runner` runs on the inference thread; returns when it is done, throws what it throws. OpenMP keeps
  // a pool of threads for every thread that calls it, and once they are more than the cores, waiting threads
  // go to sleep at once: everything LibTorch does belongs on one thread, loading included.
  Batcher(BatcherOptions options, const MakeBatchRunner& make_runner);
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;
  ~Batcher();

  // Queues an image and returns its id. Throws EngineError ERR_DIAD_QUEUE_FULL or ERR_DIAD_CLOSED.
  uint64_t submit(Submission submission);

  // Completes a pending image with ERR_DIAD_CANCELLED, at once; false if it was done already.
  bool cancel(uint64_t id);

  // Completes a session's pending images with ERR_DIAD_CLOSED.
  void close_session(uint64_t session);

  [[nodiscard]] BatcherStats stats() const;

  // Completes everything with ERR_DIAD_CLOSED and joins the threads; what runs stops where it next looks
  // (interruption.h). Idempotent.
  void close();

 private:
  using Clock = std::chrono::steady_clock;
  struct Item;
  using ItemPtr = std::shared_ptr<Item>;

  void work();
  void watch_deadlines();
  std::vector<ItemPtr> next_batch();
  [[nodiscard]] size_t batch_size() const;
  [[nodiscard]] Clock::time_point oldest() const;
  void run(std::span<const ItemPtr> batch);
  [[nodiscard]] static std::pair<int64_t, uint64_t> queue_key(const Item& item);  // in the queue
  void finish(const ItemPtr& item, Outcome outcome);
  void fail(const ItemPtr& item, const Failure& failure) noexcept;
  void finish_all(const std::function<bool(const Item&)>& chosen, const Failure& failure);

  const BatcherOptions options_;
  BatchRunner runner_;  // set before the first batch
  mutable std::mutex mutex_;
  std::condition_variable queue_changed_, deadlines_changed_;
  std::map<std::pair<int64_t, uint64_t>, ItemPtr> queue_;  // by queue_key: those that wait
  std::unordered_map<uint64_t, ItemPtr> pending_;          // queued or running
  uint64_t running_ = 0, next_id_ = 1;
  uint64_t completed_ = 0, failed_ = 0, cancelled_ = 0, batches_ = 0, batched_ = 0;
  std::deque<double> queue_ms_, compute_ms_;
  std::atomic<bool> is_cancelled_{
      false};  // nobody waits for the running batch any more; written under mutex_
  bool closing_ = false;
  std::mutex close_mutex_;  // one closer at a time
  std::thread worker_, watcher_;
};

}  // namespace diad
