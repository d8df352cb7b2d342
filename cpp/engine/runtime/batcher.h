// Bounded priority queue in front of the inference thread, with batching, cancellation, timeouts and
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
  std::chrono::milliseconds max_delay{0};  // how long an incomplete batch waits for more images
  int64_t queue_limit = 1024;              // queued images, >= 1
  // Batch sizes that start as soon as that many images wait, largest first; ascending, each from 1 to
  // max_batch. max_delay applies only while fewer images wait than the smallest size. Empty: max_batch only.
  std::vector<int64_t> preferred = {};
};

using Outcome = std::variant<ImageResult, Failure>;

struct Submission {
  Frame frame;
  uint64_t seed = 0;
  Wanted wanted;
  std::string class_name;                // see ImageRequest
  CalibrationSink calibration;           // likewise
  int64_t priority = 0;                  // larger runs first; equal priorities run in submission order
  std::chrono::milliseconds timeout{0};  // from submit; 0: no timeout
  uint64_t session = 0;                  // session of the request, for close_session
  // Called exactly once, from any thread, without holding locks of the queue.
  std::function<void(Outcome)> done;
  // Can be empty. Called from the inference thread, never after done.
  std::function<void(int64_t, int64_t)> on_step;
};

// Percentiles and mean over the most recent images, in milliseconds.
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
  // Runs `make_runner` on the inference thread, waits for it and rethrows its exception. OpenMP keeps a
  // thread pool per calling thread, and its idle threads stop spinning once there are more threads than
  // cores. Therefore all LibTorch work, loading included, runs on one thread.
  Batcher(BatcherOptions options, const MakeBatchRunner& make_runner);
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;
  ~Batcher();

  // Queues an image and returns its id. Throws EngineError ERR_DIAD_QUEUE_FULL or ERR_DIAD_CLOSED.
  uint64_t submit(Submission submission);

  // Completes a pending image with ERR_DIAD_CANCELLED at once; returns false if it had already completed.
  bool cancel(uint64_t id);

  // Completes the pending images of a session with ERR_DIAD_CLOSED.
  void close_session(uint64_t session);

  [[nodiscard]] BatcherStats stats() const;

  // Completes all images with ERR_DIAD_CLOSED and joins the threads. The running batch stops at its next
  // check_cancelled() (support/cancellation.h). Idempotent.
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
  [[nodiscard]] static std::pair<int64_t, uint64_t> queue_key(const Item& item);  // position in the queue
  void finish(const ItemPtr& item, Outcome outcome);
  void fail(const ItemPtr& item, const Failure& failure) noexcept;
  void finish_all(const std::function<bool(const Item&)>& chosen, const Failure& failure);

  const BatcherOptions options_;
  BatchRunner runner_;  // set before the first batch
  mutable std::mutex mutex_;
  std::condition_variable queue_changed_, deadlines_changed_;
  std::map<std::pair<int64_t, uint64_t>, ItemPtr> queue_;  // queued images by queue_key
  std::unordered_map<uint64_t, ItemPtr> pending_;          // queued or running
  uint64_t running_ = 0, next_id_ = 1;
  uint64_t completed_ = 0, failed_ = 0, cancelled_ = 0, batches_ = 0, batched_ = 0;
  std::deque<double> queue_ms_, compute_ms_;
  // True once every image of the running batch has completed. Written under mutex_.
  std::atomic<bool> is_cancelled_{false};
  bool closing_ = false;
  std::mutex close_mutex_;  // serializes close()
  std::thread worker_, watcher_;
};

}  // namespace diad
