#include "evidence/calibrator.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <set>
#include <span>
#include <tuple>

#include "evidence/coreset.h"
#include "evidence/evidence.h"
#include "evidence/nearest_vectors.h"
#include "evidence/normality.h"
#include "support/cancellation.h"
#include "support/engine_error.h"
#include "support/thread_pool.h"

namespace diad {

namespace {

constexpr int64_t kScoredTogether = 8;       // images whose maps are combined at a time
constexpr int64_t kCandidatesPerVector = 5;  // of the memory: random vectors that the coreset selects from

// SplitMix64 (Steele, Lea, Flood 2014): a well-mixed hash of x.
uint64_t scrambled(uint64_t x) {
  x += 0x9e3779b97f4a7c15U;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

void require_finite(const at::Tensor& values, int64_t index, const char* what) {
  if (at::isfinite(values).all().item<bool>()) return;
  throw EngineError(
      code::kInternal,
      std::string(what) + " of calibration image " + std::to_string(index) +
          " contain a value that is not finite in half precision: the networks overflowed; check the model");
}

std::string shown(const std::string& class_name) {
  return class_name.empty() ? "all images" : "the class \"" + class_name + "\"";
}

}  // namespace

struct Calibrator::Image {
  int64_t index;
  std::string class_name;
  CalibrationRoles roles;
  Features distances;  // [H_i, W_i] float32; undefined for an image that is used for the memory only
  at::Tensor vectors;  // [G * G, D] half
};

// Learns one entry of the normality file and scores its images.
class Calibrator::Learner {
 public:
  Learner(const Images& images, std::string class_name, const EvidenceSettings& evidence)
      : name_(std::move(class_name)), grid_(evidence.grid) {
    const auto count = static_cast<int64_t>(images.size()), used = std::min(count, kMostImages);
    for (int64_t i = 0; i < used; ++i) {
      const auto& image = images[static_cast<size_t>(i * count / used)];
      if (image->roles.in_memory) remembered_.push_back(image);
      if (image->roles.in_statistics) judged_.push_back(image);
    }
    if (judged_.size() < 2) {
      throw EngineError(code::kInvalidArgument, "Expected at least 2 calibration images for " + shown(name_) +
                                                    " but received " + std::to_string(judged_.size()) +
                                                    "; add defect-free images");
    }
    choose(evidence.memory_vectors);
    measure();
  }

  [[nodiscard]] NormalClass result() const {
    NormalClass result{memory_, {}, static_cast<int64_t>(judged_.size())};
    for (size_t i = 0; i < maps_.size(); ++i) {
      const NormalMap normal = normal_map(mean_[i].unsqueeze(0), spread_[i].unsqueeze(0));
      result.maps.mean[i] = normal.mean.squeeze(0);
      result.maps.divisor[i] = normal.divisor.squeeze(0);
    }
    return result;
  }

  [[nodiscard]] std::vector<UnseenScore> scores(const EvidenceCombiner& combine) const {
    std::vector<UnseenScore> result;
    const auto count = static_cast<int64_t>(judged_.size());
    for (int64_t first = 0; first < count; first += kScoredTogether) {
      check_cancelled();
      const int64_t some = std::min(kScoredTogether, count - first);
      EvidenceMaps maps;
      NormalMaps normal;
      for (size_t i = 0; i < maps.size(); ++i) {
        maps[i] = maps_[i].narrow(0, first, some);
        std::tie(normal.mean[i], normal.divisor[i]) = without(i, first, some);
      }
      const Evidence evidence = combine(normalized(maps, normal), std::span(&name_, 1));
      const at::Tensor peaks = evidence.smooth.amax({1, 2});
      for (int64_t k = 0; k < some; ++k) {
        const auto at = static_cast<size_t>(k);
        result.push_back({judged_[static_cast<size_t>(first + k)]->index, evidence.scores[at],
                          evidence.reconstruction[at], evidence.memory[at], peaks[k].item<double>()});
      }
    }
    return result;
  }

 private:
  // Selects the memory: a coreset of the vectors with the lowest keys, which depend only on image index and
  // position.
  // Vectors of one image are contiguous.
  void choose(int64_t most) {
    struct Candidate {
      uint64_t key;
      size_t image;  // index into remembered_
      int64_t position;
    };
    std::vector<Candidate> candidates;
    for (size_t image = 0; image < remembered_.size(); ++image) {
      const uint64_t of_image = scrambled(static_cast<uint64_t>(remembered_[image]->index));
      for (int64_t position = 0; position < grid_ * grid_; ++position) {
        candidates.push_back({scrambled(of_image + static_cast<uint64_t>(position)), image, position});
      }
    }
    if (static_cast<int64_t>(candidates.size()) > most) {
      const auto order = [](const Candidate& c) { return std::tuple(c.key, c.image, c.position); };
      std::ranges::sort(candidates, {}, order);
      candidates.resize(std::min(candidates.size(), static_cast<size_t>(most * kCandidatesPerVector)));
      std::vector<at::Tensor> vectors;
      for (const Candidate& c : candidates) vectors.push_back(remembered_[c.image]->vectors[c.position]);
      std::vector<Candidate> selected;
      for (const int64_t row : coreset(at::stack(vectors).to(at::kFloat), most)) {
        selected.push_back(candidates[static_cast<size_t>(row)]);
      }
      candidates = std::move(selected);
    }
    std::ranges::sort(candidates, {}, [](const Candidate& c) { return std::pair(c.image, c.position); });
    std::vector<at::Tensor> chosen;
    for (auto from = candidates.begin(); from != candidates.end();) {
      const auto to =
          std::find_if(from, candidates.end(), [&](const Candidate& c) { return c.image != from->image; });
      std::vector<int64_t> positions;
      std::transform(from, to, std::back_inserter(positions), [](const Candidate& c) { return c.position; });
      const at::Tensor rows =
          at::from_blob(positions.data(), {static_cast<int64_t>(positions.size())}, at::kLong);
      chosen.push_back(remembered_[from->image]->vectors.index_select(0, rows));
      owned_[remembered_[from->image]->index] = {from - candidates.begin(), to - candidates.begin()};
      from = to;
    }
    if (chosen.size() < 2) {
      throw EngineError(code::kInvalidArgument, "Expected vectors of at least 2 images in the memory for " +
                                                    shown(name_) + " but received those of " +
                                                    std::to_string(chosen.size()) +
                                                    "; add defect-free images");
    }
    memory_ = at::cat(chosen);
  }

  // Computes the four maps of each judged image, and their mean and standard deviation over images at each
  // position.
  void measure() {
    std::array<std::vector<at::Tensor>, 4> maps;
    NearestVectors memory(memory_, c10::kCPU);
    for (const auto& image : judged_) {
      check_cancelled();
      for (size_t i = 0; i < image->distances.size(); ++i) maps[i].push_back(image->distances[i]);
      const auto owned = owned_.find(image->index);
      const LeftOut own = owned == owned_.end() ? LeftOut{} : owned->second;
      maps[3].push_back(memory.distances(image->vectors.to(at::kFloat), own).view({grid_, grid_}));
    }
    const auto count = static_cast<double>(judged_.size());
    for (size_t i = 0; i < maps_.size(); ++i) {
      maps_[i] = at::stack(maps[i]);
      const at::Tensor values = maps_[i].to(at::kDouble);
      mean_[i] = values.mean(0);
      differences_[i] = values - mean_[i];
      squares_[i] = differences_[i].square().sum(0);
      spread_[i] = (squares_[i] / (count - 1)).sqrt();
    }
  }

  // Statistics of map i for each of the images first..first+some-1, leaving that image out: [some, H, W].
  [[nodiscard]] std::pair<at::Tensor, at::Tensor> without(size_t i, int64_t first, int64_t some) const {
    const auto others = static_cast<double>(judged_.size()) - 1;
    const at::Tensor own = differences_[i].narrow(0, first, some);
    const at::Tensor mean = mean_[i] - own / others;
    // Sum of squares around the mean of the other images: without the image itself, shifted by own / others.
    const at::Tensor squares = (squares_[i] - own.square() * (1 + 1 / others)).clamp_min(0);
    // A single other image has no spread; the spread of both is used instead.
    const at::Tensor spread = others > 1 ? (squares / (others - 1)).sqrt() : spread_[i].expand_as(own);
    const NormalMap normal = normal_map(mean, spread);
    return {normal.mean, normal.divisor};
  }

  std::string name_;
  int64_t grid_;
  Images remembered_, judged_;
  at::Tensor memory_;                                  // [M, D] half
  std::map<int64_t, LeftOut> owned_;                   // image index -> its vectors in the memory
  EvidenceMaps maps_;                                  // [n, H_i, W_i]
  std::array<at::Tensor, 4> mean_, spread_, squares_;  // [H_i, W_i] float64
  std::array<at::Tensor, 4> differences_;              // [n, H_i, W_i] float64, difference from the mean
};

Calibrator::Calibrator(Manifest manifest, int threads) : manifest_(std::move(manifest)), threads_(threads) {
  if (manifest_.evidence) return;
  throw EngineError(code::kInvalidArgument, "The bundle " + manifest_.name +
                                                " has no evidence in its manifest: it cannot be calibrated");
}

void Calibrator::add(int64_t index, const std::string& class_name, CalibrationRoles roles,
                     const Features& distances, const at::Tensor& embedding) {
  const c10::InferenceMode guard;
  auto image = std::make_shared<Image>(Image{index, class_name, roles, {}, {}});
  // Copies, because the networks' results can lie in memory that is unmapped at the end of the batch.
  image->vectors = vectors_of(embedding).to(at::kCPU, at::kHalf, /*non_blocking=*/false, /*copy=*/true);
  require_finite(image->vectors, index, "The vectors");
  if (roles.in_statistics) {
    for (size_t i = 0; i < distances.size(); ++i) {
      image->distances[i] =
          distances[i].to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous();
      require_finite(image->distances[i], index, "The maps");
    }
  }
  const std::lock_guard lock(mutex_);
  images_[index] = std::move(image);
}

Calibrator::Images Calibrator::added() const {
  Images images;
  const std::lock_guard lock(mutex_);
  for (const auto& [index, image] : images_) images.push_back(image);
  return images;
}

Calibration Calibrator::finish() const {
  const c10::InferenceMode guard;
  ThreadPool pool(threads_ - 1);
  const ThreadPoolScope sharing(pool);
  const Images images = added();
  const EvidenceCombiner combine(manifest_, c10::kCPU);
  std::set<std::string> names;
  std::map<int64_t, std::string> class_of;  // by index
  for (const auto& image : images) {
    names.insert(image->class_name);
    class_of.emplace(image->index, image->class_name);
  }
  if (names.size() < 2) names = {""};  // a single class has an entry of all images
  NormalClasses classes;
  Calibration result;
  for (const std::string& name : names) {
    const auto is_own = [&](const std::string& class_name) {
      return names.size() == 1 || class_name == name;
    };
    Images learned;
    std::ranges::copy_if(images, std::back_inserter(learned),
                         [&](const auto& image) { return name.empty() || image->class_name == name; });
    const Learner learner(learned, name, *manifest_.evidence);
    classes.emplace(name, learner.result());
    std::ranges::copy_if(learner.scores(combine), std::back_inserter(result.images),
                         [&](const UnseenScore& score) { return is_own(class_of.at(score.index)); });
  }
  std::ranges::sort(result.images, {}, &UnseenScore::index);
  result.normality = serialize_normality(classes);
  return result;
}

}  // namespace diad
