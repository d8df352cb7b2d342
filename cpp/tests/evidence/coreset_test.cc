// Tests the greedy selection of vectors on cases with known results.
#include "evidence/coreset.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cdist.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <set>

#include "random_tensor.h"
#include "support.h"

using namespace diad;

namespace {

using Rows = std::vector<int64_t>;

at::Tensor on_a_line(std::vector<float> places) {
  const auto count = static_cast<int64_t>(places.size());
  return at::tensor(places).view({count, 1});
}

}  // namespace

TEST_CASE("coreset: selects the farthest point again and again") {
  // From 0: 11 is farthest, then 5 with a distance of 5, then 8 with 3; 1 and 10 are near a selected point.
  const at::Tensor points = on_a_line({0, 1, 10, 11, 5, 8});
  CHECK(coreset(points, 1) == Rows{0});
  CHECK(coreset(points, 2) == Rows{0, 3});
  CHECK(coreset(points, 4) == Rows{0, 3, 4, 5});
}

TEST_CASE("coreset: returns all rows if there are no more than wanted") {
  CHECK(coreset(on_a_line({3, 1, 2}), 3) == Rows{0, 1, 2});
  CHECK(coreset(on_a_line({3, 1, 2}), 9) == Rows{0, 1, 2});
}

TEST_CASE("coreset: selects no row twice, not even equal ones") {
  const Rows rows = coreset(at::zeros({300, 4}), 280);
  CHECK(std::set<int64_t>(rows.begin(), rows.end()).size() == 280);
}

TEST_CASE("coreset: covers many dimensions better than the first rows do") {
  const at::Tensor points = random_tensor({900, 60}, 1);
  const Rows rows = coreset(points, 100);
  CHECK(rows == coreset(points, 100));
  const auto radius = [&](const Rows& selected) {
    return at::cdist(points, points.index_select(0, at::tensor(selected))).amin(1).max().item<float>();
  };
  Rows first(100);
  for (size_t i = 0; i < first.size(); ++i) first[i] = static_cast<int64_t>(i);
  CHECK(radius(rows) < radius(first));
}
