#include "class_metrics_call.h"

#include <algorithm>
#include <cstddef>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "class_metrics.h"
#include "promise.h"
#include "stopped.h"

namespace diad_addon {

namespace {

namespace metrics = diad::metrics;

constexpr const char* kNoRoom =
    "There is not enough memory to evaluate the class; lower scratchBytes or evaluate fewer images";

// Everything the computation needs, copied on the JavaScript thread: a reference to an array does not keep
// its memory in place when the caller transfers the buffer.
struct Request {
  bool single = true;           // float32 maps, otherwise float64
  size_t images = 0;            // of the class
  std::vector<std::byte> maps;  // [images, height, width]
  std::vector<uint8_t> masks;   // [images, height, width]
  size_t height = 0, width = 0;
  std::vector<double> image_scores;
  std::vector<uint8_t> image_labels;
  metrics::Mode mode = metrics::Mode::kExact;
  metrics::Limits limits;
};

Request read_request(const Napi::Object& object) {
  Request request;
  const auto mode = metrics::mode_of(object.Get("mode").ToString().Utf8Value());
  if (!mode) throw std::invalid_argument("Expected one of exact, diad, ader, anomalib, mvtec for mode");
  request.mode = *mode;
  request.limits.rate = object.Get("rateLimit").ToNumber().DoubleValue();
  request.limits.scratch_bytes = static_cast<size_t>(object.Get("scratchBytes").ToNumber().Int64Value());
  request.height = object.Get("height").ToNumber().Uint32Value();
  request.width = object.Get("width").ToNumber().Uint32Value();
  const size_t pixels = request.height * request.width;

  const auto scores = object.Get("imageScores").As<Napi::Float64Array>();
  request.image_scores.assign(scores.Data(), scores.Data() + scores.ElementLength());
  const auto labels = object.Get("imageLabels").As<Napi::Uint8Array>();
  request.image_labels.assign(labels.Data(), labels.Data() + labels.ElementLength());

  const auto maps = object.Get("maps").As<Napi::TypedArray>();
  request.single = maps.TypedArrayType() == napi_float32_array;
  const auto* const first_map = static_cast<const std::byte*>(maps.ArrayBuffer().Data()) + maps.ByteOffset();
  const size_t map_bytes = pixels * maps.ElementSize();
  const auto masks = object.Get("masks").As<Napi::Uint8Array>();
  const auto indices = object.Get("indices").As<Napi::Uint32Array>();
  request.images = indices.ElementLength();
  const size_t whole =
      std::min(maps.ElementLength(), masks.ElementLength()) / std::max<size_t>(1, pixels);  // images
  for (size_t i = 0; i < request.images; ++i) {
    if (indices[i] >= whole) {
      throw std::invalid_argument("Expected maps and masks of " + std::to_string(request.height) + " x " +
                                  std::to_string(request.width) +
                                  " for every image but they end before image " + std::to_string(indices[i]));
    }
  }
  request.maps.reserve(request.images * map_bytes);
  request.masks.reserve(request.images * pixels);
  for (size_t i = 0; i < request.images; ++i) {
    const size_t start = static_cast<size_t>(indices[i]) * pixels;
    const std::byte* map = first_map + start * maps.ElementSize();
    request.maps.insert(request.maps.end(), map, map + map_bytes);
    request.masks.insert(request.masks.end(), masks.Data() + start, masks.Data() + start + pixels);
  }
  return request;
}

template <typename Score>
metrics::ClassMetrics compute(const Request& request, const std::function<bool()>& stop) {
  const size_t pixels = request.height * request.width;
  std::vector<const Score*> maps;
  std::vector<const uint8_t*> masks;
  for (size_t i = 0; i < request.images; ++i) {
    maps.push_back(reinterpret_cast<const Score*>(request.maps.data()) + i * pixels);
    masks.push_back(request.masks.data() + i * pixels);
  }
  const metrics::ClassImages<Score> images{
      maps, masks, request.height, request.width, request.image_scores, request.image_labels};
  return metrics::class_metrics(images, request.mode, request.limits, stop);
}

Napi::Object convert(Napi::Env env, const metrics::ClassMetrics& found) {
  Napi::Object object = Napi::Object::New(env);
  const std::pair<const char*, std::optional<double>> values[] = {
      {"imageAuroc", found.image_auroc},
      {"imageAp", found.image_ap},
      {"imageF1max", found.image_f1max},
      {"imageF1maxScore", found.image_f1max_score},
      {"pixelAuroc", found.pixel_auroc},
      {"pixelAp", found.pixel_ap},
      {"pixelF1max", found.pixel_f1max},
      {"pixelF1maxScore", found.pixel_f1max_score},
      {"auPro", found.au_pro}};
  for (const auto& [name, value] : values)
    object.Set(name, value ? Napi::Number::New(env, *value).As<Napi::Value>() : env.Null());
  Napi::Float64Array curve = Napi::Float64Array::New(env, 4 * found.pixel_curve.size());
  size_t place = 0;
  for (const metrics::CurvePoint& point : found.pixel_curve) {
    for (const double value :
         {point.score, point.false_positive_rate, point.true_positive_rate, point.precision})
      curve[place++] = value;
  }
  object.Set("pixelCurve", curve);
  return object;
}

}  // namespace

Napi::Value class_metrics_call(const Napi::CallbackInfo& info,
                               const std::shared_ptr<Environment>& environment) {
  const Napi::Env env = info.Env();
  auto operation = std::make_shared<Operation>(env, environment);
  const Napi::Promise promise = operation->promise();
  if (environment->closed()) {
    operation->reject(env, "ERR_DIAD_CLOSED", "diad was shut down in this environment");
    return promise;
  }
  std::shared_ptr<Request> request;
  try {
    request = std::make_shared<Request>(read_request(info[0].As<Napi::Object>()));
  } catch (const std::bad_alloc&) {
    operation->reject(env, "ERR_DIAD_OUT_OF_MEMORY", kNoRoom);
    return promise;
  } catch (const std::exception& error) {  // includes JavaScript exceptions
    operation->reject(env, "ERR_DIAD_INVALID_ARGUMENT", error.what());
    return promise;
  }
  const bool started =
      environment->run_in_background([environment, operation, request = std::move(request)]() mutable {
        const auto reject = [&](const char* code, std::string message) {
          environment->post([operation, code, message = std::move(message)](Napi::Env loop) {
            operation->reject(loop, code, message);
          });
        };
        try {
          const std::function<bool()> stop = [&environment] { return environment->closed(); };
          auto found = request->single ? compute<float>(*request, stop) : compute<double>(*request, stop);
          environment->post([operation, found = std::move(found)](Napi::Env loop) {
            try {
              operation->resolve(loop, convert(loop, found));
            } catch (const Napi::Error&) {  // V8 cannot allocate the curve
              operation->reject(loop, "ERR_DIAD_OUT_OF_MEMORY", kNoRoom);
            }
          });
        } catch (const metrics::Stopped&) {
          reject("ERR_DIAD_CLOSED", "diad was shut down in this environment");
        } catch (const std::bad_alloc&) {
          reject("ERR_DIAD_OUT_OF_MEMORY", kNoRoom);
        } catch (const std::exception& error) {
          reject("ERR_DIAD_INVALID_ARGUMENT", error.what());
        }
      });
  if (!started) operation->reject(env, "ERR_DIAD_OUT_OF_MEMORY", kNoThread);
  return promise;
}

}  // namespace diad_addon
