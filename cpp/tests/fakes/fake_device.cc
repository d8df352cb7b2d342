#include "fakes/fake_device.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#if __has_include(<ATen/core/GraphImplInterface.h>)
#include <ATen/core/GraphImplInterface.h>
#define DIAD_HAS_GRAPHS 1
#endif

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

namespace fake_device {

namespace {

using c10::Stream;

struct Recorded {
  int64_t origin;  // the stream on which the capture started
  // Other streams that received work since, and that the origin does not wait for.
  std::set<int64_t> unjoined{};
  bool lost = false;
};

struct State {
  std::recursive_mutex mutex;
  std::vector<std::string> told;
  int64_t streams = 0;  // number of streams created; 0 is the default stream
  std::optional<Recorded> recorded;
  std::map<uint64_t, int> pools;  // captures per pool
  std::set<uint64_t> underway;    // pools with an active capture, as the allocator believes
  uint64_t pools_made = 0;
};

State& state() {
  static auto* const one = new State;
  return *one;
}

void tell(const std::string& words) { state().told.push_back(words); }

thread_local int64_t current = 0;

struct FakeEvent {
  int64_t stream;
  bool recorded;  // part of a capture
};

bool is_recorded(int64_t stream) {
  const auto& recorded = state().recorded;
  return recorded && (recorded->origin == stream || recorded->unjoined.contains(stream));
}

// Rejects an operation that is not allowed during capture, which also invalidates the capture.
void refuse_if(bool not_allowed) {
  if (!not_allowed) return;
  state().recorded->lost = true;
  TORCH_CHECK(false, "CUDA error: operation not permitted when stream is capturing");
}

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return c10::kPrivateUse1; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }

  Stream getStream(c10::Device) const override { return stream(current); }
  Stream getDefaultStream(c10::Device) const override { return stream(0); }
  Stream getStreamFromGlobalPool(c10::Device, bool) const override {
    const std::scoped_lock lock(state().mutex);
    return stream(++state().streams);
  }
  Stream exchangeStream(Stream next) const override {
    const std::scoped_lock lock(state().mutex);
    if (next.id() != current) tell("stream " + std::to_string(next.id()));
    return stream(std::exchange(current, next.id()));
  }

  void record(void** event, const Stream& on, const c10::DeviceIndex, const c10::EventFlag) const override {
    const std::scoped_lock lock(state().mutex);
    if (*event == nullptr) *event = new FakeEvent;
    *static_cast<FakeEvent*>(*event) = {on.id(), is_recorded(on.id())};
  }
  void block(void* event, const Stream& later) const override {
    const std::scoped_lock lock(state().mutex);
    const auto [earlier, recorded] = *static_cast<FakeEvent*>(event);
    tell(std::to_string(later.id()) + " after " + std::to_string(earlier));
    if (!recorded || !state().recorded) return;
    if (later.id() == state().recorded->origin) {
      state().recorded->unjoined.erase(earlier);
    } else {
      state().recorded->unjoined.insert(later.id());
    }
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<FakeEvent*>(event);
  }

  void synchronizeStream(const Stream& on) const override {
    const std::scoped_lock lock(state().mutex);
    refuse_if(is_recorded(on.id()));
  }
  void synchronizeDevice(const c10::DeviceIndex) const override {
    const std::scoped_lock lock(state().mutex);
    refuse_if(state().recorded.has_value());
  }

 private:
  static Stream stream(int64_t id) { return Stream(Stream::UNSAFE, kDevice, id); }
};

#ifdef DIAD_HAS_GRAPHS

class Graph final : public at::GraphImplInterface {
 public:
  explicit Graph(const at::GraphImplArgs&) {}
  ~Graph() override { reset(); }

  void capture_begin(at::MempoolId_t pool, at::GraphCaptureMode mode) override {
    const std::scoped_lock lock(state().mutex);
    TORCH_CHECK(current != 0, "CUDA graphs must be captured on a non-default stream");
    TORCH_CHECK(mode == at::GraphCaptureMode::ThreadLocal, "what other threads do would end the recording");
    pool_ = pool.first != 0 ? pool.first : ++state().pools_made;
    TORCH_CHECK(pool.first == 0 || state().pools[pool_] > 0, "use_count > 0");
    TORCH_CHECK(!state().underway.contains(pool_), "already recording to mempool_id");
    state().underway.insert(pool_);
    state().recorded = Recorded{current};
    tell("record on " + std::to_string(current) + ", pool " + std::to_string(pool_));
  }

  void capture_end() override {
    const std::scoped_lock lock(state().mutex);
    const Recorded recorded = *std::exchange(state().recorded, std::nullopt);
    TORCH_CHECK(recorded.origin == current, "Capture must end on the same stream it began on.");
    TORCH_CHECK(!recorded.lost, "CUDA error: operation failed due to a previous error during capture");
    TORCH_CHECK(recorded.unjoined.empty(), "CUDA error: capture sequence contains unjoined work");
    state().underway.erase(pool_);
    ++state().pools[pool_];
    ended_ = true;
    tell("end, pool " + std::to_string(pool_));
  }

  void replay() override { TORCH_CHECK(ended_, "nothing was recorded"); }

  void reset() override {
    const std::scoped_lock lock(state().mutex);
    if (std::exchange(ended_, false)) --state().pools[pool_];
  }

  void instantiate() override {}
  at::MempoolId_t pool() const override { return {pool_, 0}; }
  void enable_debug_mode() override {}
  void debug_dump(const std::string&) override {}

 private:
  uint64_t pool_ = 0;
  bool ended_ = false;
};

#endif

class Memory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t) override { return {nullptr, kDevice}; }
  void copy_data(void*, const void*, size_t) const override {
    TORCH_CHECK(false, "there is nothing to copy");
  }
};

}  // namespace

void begin() {
  static const bool once = [] {
    c10::register_privateuse1_backend("fake");
    static const c10::impl::DeviceGuardImplRegistrar guard(c10::kPrivateUse1, new Guard);
#ifdef DIAD_HAS_GRAPHS
    at::GraphImplRegistry()->Register(
        c10::DeviceTypeName(c10::kPrivateUse1, false),
        [](const at::GraphImplArgs& args) -> std::unique_ptr<at::GraphImplInterface> {
          return std::make_unique<Graph>(args);
        });
#endif
    return true;
  }();
  static_cast<void>(once);
  const std::scoped_lock lock(state().mutex);
  state().told.clear();
  state().streams = 0;
  state().recorded.reset();
  state().underway.clear();
  current = 0;
}

std::vector<std::string> told() {
  const std::scoped_lock lock(state().mutex);
  return state().told;
}

void wait_for_all() { Guard().synchronizeDevice(0); }

at::Tensor tensor() {
  static auto* const memory = new Memory;
  return at::detail::empty_generic({2, 3}, memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   at::kFloat, std::nullopt);
}

}  // namespace fake_device
