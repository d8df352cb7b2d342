// The C interface on top of Model: plain structs in and out, no exceptions.
#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "diad_engine.h"
#include "evidence/calibrator.h"
#include "runtime/model.h"
#include "runtime/operator_profile.h"
#include "support/cancellation.h"
#include "support/engine_error.h"
#include "support/error_translation.h"

struct diad_engine {
  std::shared_ptr<diad::Model> model;
  uint64_t session;
};

struct diad_calibrator {
  std::shared_ptr<diad::Calibrator> calibrator;
};

namespace {

using diad::EngineError;
using diad::Failure;
using diad::ImageResult;
using diad::Outcome;
namespace code = diad::code;

// Last failure of each thread. Thread-local, so it lives until the thread's last call.
thread_local Failure last_failure{nullptr, {}};

// Runs `body` and stores a failure for diad_engine_last_error.
template <typename Body>
int32_t guarded(Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (...) {
    last_failure = diad::describe_current_failure();
    return 1;
  }
}

// A diad_result that owns everything it points to.
struct OwnedResult : diad_result {
  OwnedResult() : diad_result{} {}

  void set(Outcome outcome) {
    if (auto* why = std::get_if<Failure>(&outcome)) {
      failure = std::move(*why);
      error = {failure.code, failure.message.c_str()};
      return;
    }
    image = std::move(std::get<ImageResult>(outcome));
    score = image.score;
    size = static_cast<int32_t>(image.size);
    diad_result::map = image.map.empty() ? nullptr : image.map.data();
    diad_result::reconstruction = image.reconstruction.empty() ? nullptr : image.reconstruction.data();
    for (const diad::Stage& stage : image.stages) {
      stage_views.push_back({stage.name.c_str(), stage.shape.data(), static_cast<int32_t>(stage.shape.size()),
                             stage.values.data()});
    }
    diad_result::stages = stage_views.data();
    stage_count = static_cast<int32_t>(stage_views.size());
    batch_size = static_cast<int32_t>(image.batch_size);
    const diad::Timings& t = image.timings;
    timings = {t.queue, t.compute, t.resize, t.encode, t.denoise, t.decode, t.extract, t.map};
    if (!image.evidence) return;
    has_evidence = 1;
    evidence_reconstruction = image.evidence->reconstruction;
    evidence_memory = image.evidence->memory;
    class_name = image.evidence->class_name.c_str();
  }

  Failure failure{nullptr, {}};
  ImageResult image;
  std::vector<diad_stage> stage_views;
};

// A diad_unseen_scores that owns everything it points to.
class OwnedScores {
 public:
  explicit OwnedScores(const std::vector<diad::UnseenScore>& of_images) {
    for (const diad::UnseenScore& image : of_images) {
      indices_.push_back(static_cast<uint32_t>(image.index));
      scores_.push_back(image.score);
      reconstruction_.push_back(image.reconstruction);
      memory_.push_back(image.memory);
      peaks_.push_back(image.peak);
    }
  }

  [[nodiscard]] diad_unseen_scores view() const {
    return {static_cast<int64_t>(indices_.size()),
            indices_.data(),
            scores_.data(),
            reconstruction_.data(),
            memory_.data(),
            peaks_.data()};
  }

 private:
  std::vector<uint32_t> indices_;
  std::vector<double> scores_, reconstruction_, memory_, peaks_;
};

// A diad_calibration that owns everything it points to.
struct OwnedCalibration : diad_calibration {
  explicit OwnedCalibration(diad::Calibration calibration)
      : diad_calibration{}, bytes(std::move(calibration.normality)), scores(calibration.images) {
    diad_calibration::normality = bytes.data();
    normality_size = bytes.size();
    images = scores.view();
  }

  std::vector<uint8_t> bytes;
  OwnedScores scores;
};

diad::CalibrationSink sink_of(const diad_request& request) {
  if (request.calibrator == nullptr) return {};
  if (request.image_index < 0 || request.image_index > std::numeric_limits<uint32_t>::max()) {
    throw EngineError(code::kInvalidArgument,
                      "Expected an index from 0 to 2^32 - 1 for a calibration image but received " +
                          std::to_string(request.image_index));
  }
  return {request.calibrator->calibrator,
          request.image_index,
          {request.in_memory != 0, request.in_statistics != 0}};
}

constexpr uint32_t kLargestSide = 1 << 20;  // pixels

diad::Frame copy_frame(const diad_request& request) {
  const bool channels_fit = request.channels == 1 || request.channels == 3 || request.channels == 4;
  if (request.width == 0 || request.height == 0 || request.width > kLargestSide ||
      request.height > kLargestSide || !channels_fit) {
    throw EngineError(code::kInvalidArgument,
                      "Expected a frame of at least 1 x 1 with 1, 3 or 4 channels but received " +
                          std::to_string(request.width) + " x " + std::to_string(request.height) + " with " +
                          std::to_string(request.channels));
  }
  const size_t bytes = static_cast<size_t>(request.width) * request.height * request.channels;
  return {{request.pixels, request.pixels + bytes}, request.width, request.height, request.channels};
}

int require_at_least(const char* name, int32_t value, int32_t low) {
  if (value < low) {
    throw EngineError(code::kInvalidArgument, "Expected at least " + std::to_string(low) + " for " + name +
                                                  " but received " + std::to_string(value));
  }
  return value;
}

std::vector<int64_t> preferred_batches(const diad_load_options& options) {
  std::vector<int64_t> sizes;
  for (int32_t i = 0; i < options.preferred_count; ++i) {
    sizes.push_back(require_at_least("preferredBatches", options.preferred_batches[i],
                                     sizes.empty() ? 1 : static_cast<int32_t>(sizes.back())));
  }
  if (!sizes.empty() && sizes.back() > options.max_batch) {
    throw EngineError(code::kInvalidArgument, "Expected at most maxBatch for preferredBatches but received " +
                                                  std::to_string(sizes.back()));
  }
  return sizes;
}

}  // namespace

int32_t diad_engine_abi(void) { return DIAD_ENGINE_ABI; }

const char* diad_engine_version(void) {
  static auto* version = new std::string;  // never destroyed
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (version->empty() && guarded([] { *version = diad::engine_version(); }) != 0) return nullptr;
  return version->c_str();
}

int32_t diad_engine_load(const char* bundle, const diad_load_options* options, diad_engine** engine) {
  static std::atomic<uint64_t> sessions{0};
  return guarded([&] {
    diad::LoadOptions load;
    load.device = options->device;
    load.precision = options->precision;
    load.threads = require_at_least("threads", options->threads, 0);
    load.queue.max_batch = require_at_least("maxBatch", options->max_batch, 1);
    load.queue.max_delay =
        std::chrono::milliseconds(require_at_least("maxDelayMs", options->max_delay_ms, 0));
    load.queue.queue_limit = require_at_least("queueLimit", options->queue_limit, 1);
    load.queue.preferred = preferred_batches(*options);
    load.verify = options->verify != 0;
    load.warmup = options->warmup != 0;
    if (options->normality != nullptr) load.normality = options->normality;
    const diad::CancellationScope scope(
        [options] { return options->is_cancelled != nullptr && options->is_cancelled(options->user) != 0; });
    *engine = new diad_engine{diad::open_model(bundle, load), ++sessions};
  });
}

const char* diad_engine_info(diad_engine* engine) { return engine->model->info().c_str(); }

int32_t diad_engine_submit(diad_engine* engine, const diad_request* request, uint64_t* id) {
  return guarded([&] {
    diad::Submission submission;
    submission.frame = copy_frame(*request);
    submission.seed = request->seed;
    submission.wanted = {request->want_map != 0, request->want_reconstruction != 0,
                         request->want_stages != 0};
    if (request->class_name != nullptr) submission.class_name = request->class_name;
    submission.calibration = sink_of(*request);
    submission.timeout = std::chrono::milliseconds(request->timeout_ms);
    submission.priority = request->priority;
    submission.session = engine->session;
    // Preallocated so that out-of-memory can still be reported.
    submission.done = [done = request->done, user = request->user,
                       place = std::make_shared<std::unique_ptr<OwnedResult>>(
                           std::make_unique<OwnedResult>())](Outcome outcome) {
      std::unique_ptr<OwnedResult> result = std::move(*place);
      try {
        result->set(std::move(outcome));
      } catch (const std::bad_alloc&) {
        result->set(diad::no_memory());
      }
      done(user, result.release());
    };
    if (request->on_step != nullptr) {
      submission.on_step = [on_step = request->on_step, user = request->user](int64_t step, int64_t total) {
        on_step(user, static_cast<int32_t>(step), static_cast<int32_t>(total));
      };
    }
    *id = engine->model->queue().submit(std::move(submission));
  });
}

int32_t diad_engine_cancel(diad_engine* engine, uint64_t id) {
  bool found = false;
  static_cast<void>(guarded([&] { found = engine->model->queue().cancel(id); }));
  return found ? 1 : 0;
}

void diad_engine_stats(diad_engine* engine, diad_stats* stats) {
  diad::BatcherStats s{};
  static_cast<void>(guarded([&] { s = engine->model->queue().stats(); }));
  *stats = {s.queued,         s.running,        s.completed,      s.failed,       s.cancelled,
            s.batches,        s.mean_batch,     s.queue_ms.p50,   s.queue_ms.p99, s.queue_ms.mean,
            s.compute_ms.p50, s.compute_ms.p99, s.compute_ms.mean};
}

void diad_engine_close(diad_engine* engine) {
  static_cast<void>(guarded([&] { engine->model->queue().close_session(engine->session); }));
  delete engine;
}

void diad_engine_result_free(diad_result* result) { delete static_cast<OwnedResult*>(result); }

int32_t diad_calibrator_new(diad_engine* engine, diad_calibrator** calibrator) {
  return guarded([&] {
    *calibrator = new diad_calibrator{
        std::make_shared<diad::Calibrator>(engine->model->manifest(), engine->model->threads())};
  });
}

int32_t diad_calibrator_finish(diad_calibrator* calibrator, int32_t (*is_cancelled)(void* user), void* user,
                               diad_calibration** calibration) {
  return guarded([&] {
    const diad::CancellationScope scope(
        [is_cancelled, user] { return is_cancelled != nullptr && is_cancelled(user) != 0; });
    *calibration = new OwnedCalibration(calibrator->calibrator->finish());
  });
}

void diad_calibration_free(diad_calibration* calibration) {
  delete static_cast<OwnedCalibration*>(calibration);
}

void diad_calibrator_free(diad_calibrator* calibrator) { delete calibrator; }

int32_t diad_engine_profile_start(void) {
  return guarded([] { diad::start_operator_profile(); });
}

const char* diad_engine_profile_end(void) {
  thread_local std::string profile;
  return guarded([] { profile = diad::end_operator_profile(); }) == 0 ? profile.c_str() : nullptr;
}

diad_error diad_engine_last_error(void) { return {last_failure.code, last_failure.message.c_str()}; }
