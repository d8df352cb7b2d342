#include "support/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace diad {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

// Workers spin longer than the gap between two loops of a network: waking a sleeping thread takes tens of
// microseconds.
constexpr microseconds kHelperSpins{200};
// A worker's last piece takes less, unless another process has its core.
constexpr microseconds kOwnerSpins{50};
// A worker that delays the owner by more than kLate, and by more than the loop itself took, has lost its
// core. For kAloneFactor times that delay the owner is faster on its own, but for at most kMostAlone: perhaps
// the whole process was suspended.
constexpr microseconds kLate{500}, kMostAlone{1'000'000};
constexpr int kAloneFactor = 10;
// A thread's part of a loop is cut into up to kPieces pieces of at least kGrainsOfAPiece grains: every piece
// interrupts the sequential reads.
constexpr int64_t kGrainsOfAPiece = 4, kPieces = 4;

void pause_briefly() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("yield");
#endif
}

// Spins until `is_over` returns true, for at most `most`; returns the last result.
template <typename Condition>
bool spin(microseconds most, const Condition& is_over) {
  constexpr int kBetweenClocks = 16;
  const Clock::time_point end = Clock::now() + most;
  do {
    for (int i = 0; i < kBetweenClocks; ++i) {
      if (is_over()) return true;
      pause_briefly();
    }
  } while (Clock::now() < end);
  return is_over();
}

// State of the current loop in one word: its number, how many workers can still join it, how many are in it.
constexpr uint64_t kInside = 1, kPlace = 1 << 16, kNumber = uint64_t{1} << 32;
constexpr uint64_t inside(uint64_t state) { return state % kPlace; }
constexpr uint64_t places(uint64_t state) { return state % kNumber / kPlace; }
constexpr uint64_t number(uint64_t state) { return state / kNumber; }

}  // namespace

class PoolState {
 public:
  explicit PoolState(int count) : parts_(static_cast<size_t>(most_of(count)) + 1) {
    threads_.reserve(parts_.size() - 1);
    try {
      for (int i = 0; i < most_of(count); ++i) threads_.emplace_back([this, i] { help(i + 1); });
    } catch (const std::exception&) {  // continue with the threads that were created
    }
  }

  ~PoolState() {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  PoolState(const PoolState&) = delete;
  PoolState& operator=(const PoolState&) = delete;

  [[nodiscard]] int threads() const { return static_cast<int>(threads_.size()); }

  void share(int64_t count, int64_t grain, LoopBody body) {
    const int64_t grains = (count + grain - 1) / grain, workers = sharing_ ? 0 : useful(grains);
    if (workers == 0) {
      body.call(body.body, 0, count);
      return;
    }
    sharing_ = true;
    body_ = body;
    count_ = count;
    parts_in_use_ = workers + 1;
    const int64_t pieces = std::clamp<int64_t>(grains / (parts_in_use_ * kGrainsOfAPiece), 1, kPieces);
    piece_ = std::max<int64_t>(1, count / (parts_in_use_ * pieces));
    for (int64_t i = 0; i < parts_in_use_; ++i) {
      Part& part = parts_[static_cast<size_t>(i)];
      part.next.store(count * i / parts_in_use_, std::memory_order_relaxed);
      part.end = count * (i + 1) / parts_in_use_;
    }
    failed_.store(false, std::memory_order_relaxed);
    state_.store((number(state_.load(std::memory_order_relaxed)) + 1) * kNumber +
                 static_cast<uint64_t>(workers) * kPlace);
    if (const int64_t awake = threads() - asleep_.load(); awake < workers) call(workers - awake);
    const Clock::time_point started = Clock::now();
    take_pieces(0);
    close(started);
    sharing_ = false;
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  static int most_of(int count) { return std::clamp(count, 0, static_cast<int>(kPlace) - 1); }

  // Returns the number of workers that are useful for a loop of `grains`; 0 while the owner works alone.
  int64_t useful(int64_t grains) {
    if (threads_.empty() || grains < 2) return 0;
    if (alone_until_ != Clock::time_point{}) {
      if (Clock::now() < alone_until_) return 0;
      alone_until_ = {};
    }
    return std::min<int64_t>(threads(), grains - 1);
  }

  // Wakes `workers` sleeping threads.
  void call(int64_t workers) {
    {
      const std::lock_guard lock(mutex_);
      calls_ = workers;
    }
    for (int64_t i = 0; i < workers; ++i) wake_.notify_one();
  }

  // Processes the pieces of the thread's own part in order, which is the order of weights in memory, then
  // steals pieces from other parts.
  void take_pieces(int64_t thread) {
    try {
      for (int64_t i = 0; i < parts_in_use_; ++i) {
        Part& part = parts_[static_cast<size_t>((thread + i) % parts_in_use_)];
        for (;;) {
          const int64_t begin = part.next.fetch_add(piece_, std::memory_order_relaxed);
          if (begin >= part.end) break;
          body_.call(body_.body, begin, std::min(begin + piece_, part.end));
        }
      }
    } catch (...) {
      if (!failed_.exchange(true)) failure_ = std::current_exception();
      for (Part& part : parts_) part.next.store(count_, std::memory_order_relaxed);
    }
  }

  // Closes the loop to further workers and waits for those inside.
  void close(Clock::time_point started) {
    uint64_t state = state_.load();
    while (!state_.compare_exchange_weak(state, state - places(state) * kPlace)) {
    }
    const auto is_over = [this] { return inside(state_.load(std::memory_order_acquire)) == 0; };
    if (is_over()) return;
    const Clock::time_point from = Clock::now();
    if (!spin(kOwnerSpins, is_over)) {
      // Sleep, so that the system can give this core to the delayed worker.
      std::unique_lock lock(mutex_);
      owner_waits_.store(true);
      over_.wait(lock, [&] { return inside(state_.load()) == 0; });
      owner_waits_.store(false);
    }
    const Clock::time_point to = Clock::now();
    if (to - from > std::max<Clock::duration>(kLate, from - started)) {
      alone_until_ = to + std::min<Clock::duration>(kMostAlone, kAloneFactor * (to - from));
    }
  }

  void help(int64_t thread) {
    uint64_t last = 0;
    for (;;) {
      uint64_t state = 0;
      const auto is_open = [&] {
        state = state_.load();
        return places(state) > 0 && number(state) != last;
      };
      if (!spin(kHelperSpins, is_open)) {
        std::unique_lock lock(mutex_);
        asleep_.fetch_add(1);
        wake_.wait(lock, [&] { return ending_ || calls_ > 0 || is_open(); });
        asleep_.fetch_sub(1);
        if (ending_) return;
        calls_ = std::max<int64_t>(0, calls_ - 1);
        continue;  // possibly too late for this loop, but awake for the next
      }
      if (!state_.compare_exchange_strong(state, state - kPlace + kInside)) continue;
      last = number(state);
      take_pieces(thread);
      if (inside(state_.fetch_sub(kInside)) == 1 && owner_waits_.load()) {
        {
          const std::lock_guard lock(mutex_);
        }
        over_.notify_one();
      }
    }
  }

  struct alignas(64) Part {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  // The current loop; written while no worker is inside.
  LoopBody body_{};
  int64_t count_ = 0, piece_ = 1, parts_in_use_ = 0;
  std::vector<Part> parts_;
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;

  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int> asleep_{0};
  std::atomic<bool> owner_waits_{false};
  // Used by the owner only.
  Clock::time_point alone_until_{};
  bool sharing_ = false;  // inside a loop, whose body can contain nested loops

  std::mutex mutex_;
  std::condition_variable wake_, over_;
  int64_t calls_ = 0;  // wake-ups not yet consumed by a sleeping worker
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

namespace {

thread_local PoolState* of_this_thread = nullptr;

}  // namespace

ThreadPool::ThreadPool(int count) : pool_(std::make_unique<PoolState>(count)) {}

ThreadPool::~ThreadPool() = default;

int ThreadPool::count() const { return pool_->threads(); }

ThreadPoolScope::ThreadPoolScope(ThreadPool& pool)
    : before_(std::exchange(of_this_thread, pool.pool_.get())) {}

ThreadPoolScope::~ThreadPoolScope() { of_this_thread = before_; }

void run_loop(int64_t count, int64_t grain, LoopBody body) {
  if (count <= 0) return;
  if (of_this_thread == nullptr) {
    body.call(body.body, 0, count);
  } else {
    of_this_thread->share(count, std::max<int64_t>(1, grain), body);
  }
}

}  // namespace diad
