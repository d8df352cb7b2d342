// Tests the graph passes for accelerators on the CPU: the resulting graph and unchanged values.
#include "cuda/cuda_graph_passes.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/nvrtc.h"
#include "fakes/fake_device.h"
#include "program.h"
#include "random_tensor.h"
#include "support.h"

namespace {

using namespace diad;

// Kinds of the nodes in order, without constants.
std::vector<std::string> order(const torch::jit::Graph& graph) {
  std::vector<std::string> kinds;
  for (const auto* node : graph.nodes()) {
    if (node->kind() != c10::prim::Constant) kinds.emplace_back(node->kind().toQualString());
  }
  return kinds;
}

// Like the denoiser: a branch with the hint, the first half of the network without it, the second half with
// both.
constexpr const char* kBranches = R"(graph(%z : Tensor, %hint : Tensor):
  %one : int = prim::Constant[value=1]()
  %rest : Tensor = aten::rsub(%z, %one, %one)
  %own : Tensor = aten::cos(%z)
  %guided : Tensor = aten::add(%own, %hint, %one)
  %control : Tensor = aten::exp(%guided)
  %two : int = prim::Constant[value=2]()
  %down : Tensor = aten::mul(%rest, %rest)
  %middle : Tensor = aten::add(%down, %z, %two)
  %up : Tensor = aten::add(%middle, %control, %one)
  %tail : Tensor = aten::neg(%z)
  %eps : Tensor = aten::mul(%up, %tail)
  return (%eps))";

}  // namespace

TEST_CASE("moves the branch without the hint to a second stream without changing values") {
  const c10::InferenceMode guard;
  Program program(kBranches);
  const at::Tensor z = random_tensor({2, 3}, 1), hint = random_tensor({2, 3}, 2);
  const at::Tensor expected = program.run({z, hint});
  CHECK(overlap_branches(program.graph, 1) == 2);
  program.graph->lint();
  const std::vector<std::string> wanted{
      "aten::rsub", "diad::enter_side", "aten::mul", "aten::add",           "diad::leave_side",
      "aten::cos",  "aten::add",        "aten::exp", "prim::ListConstruct", "diad::join_side",
      "aten::add",  "aten::neg",        "aten::mul"};
  CHECK(order(*program.graph) == wanted);
  CHECK(program.run({z, hint}).equal(expected));
  // Tensors of the first stream that the second one reads live until the streams join: 1 - z and z.
  for (const auto* node : program.graph->nodes()) {
    if (node->kind() == c10::prim::ListConstruct) CHECK(node->inputs().size() == 2);
  }
}

TEST_CASE("the second stream starts after the first, is joined, and is left after an error") {
  const c10::InferenceMode guard;
  // Only the size of z is read, because the device computes nothing.
  constexpr const char* kOfSizes = R"(graph(%z : Tensor, %hint : Tensor, %dim : int):
  %one : int = prim::Constant[value=1]()
  %guided : Tensor = aten::mul(%hint, %hint)
  %rows : int = aten::size(%z, %dim)
  %up : Tensor = aten::add(%guided, %rows, %one)
  return (%up))";
  Program program(kOfSizes);
  REQUIRE(overlap_branches(program.graph, 1) == 1);
  const auto run = [&](int64_t dim) {
    const OverlapScope scope;
    torch::jit::Stack stack{fake_device::tensor(), at::ones({1}), dim};
    torch::jit::InterpreterState(torch::jit::Code(program.graph, "test")).run(stack);
    return stack.at(0).toTensor().item<float>();
  };
  const std::vector<std::string> wanted{"1 after 0", "stream 1", "stream 0", "0 after 1"};
  fake_device::begin();
  CHECK(run(1) == 4);
  CHECK(fake_device::told() == wanted);
  Program other(kOfSizes);
  std::swap(program.graph, other.graph);
  REQUIRE(overlap_branches(program.graph, 1) == 1);
  fake_device::begin();
  CHECK_THROWS(run(7));  // no such dimension
  CHECK(fake_device::told() == wanted);
}

TEST_CASE("disables TF32 in traced convolutions") {
  const c10::InferenceMode guard;
  Program program(R"(graph(%x : Tensor, %weight : Tensor):
  %none : NoneType = prim::Constant()
  %ones : int[] = prim::Constant[value=[1, 1]]()
  %zeros : int[] = prim::Constant[value=[0, 0]]()
  %one : int = prim::Constant[value=1]()
  %off : bool = prim::Constant[value=0]()
  %on : bool = prim::Constant[value=1]()
  %a : Tensor = aten::_convolution(%x, %weight, %none, %ones, %zeros, %ones, %off, %zeros, %one, %off, %off, %on, %on)
  %b : Tensor = aten::_convolution(%a, %weight, %none, %ones, %zeros, %ones, %off, %zeros, %one, %off, %off, %on)
  return (%b))",
                  {{"weight", random_tensor({2, 2, 1, 1}, 1)}});
  const at::Tensor x = random_tensor({1, 2, 3, 3}, 2), expected = program.run({x});
  CHECK(forbid_tf32(program.graph) == 1);  // the older overload uses the process-wide setting
  program.graph->lint();
  for (const auto* node : program.graph->nodes()) {
    if (node->kind() != c10::Symbol::fromQualString("aten::_convolution")) continue;
    CHECK(torch::jit::toIValue(node->input(11))->toBool());
    if (node->inputs().size() == 13) CHECK(!torch::jit::toIValue(node->input(12))->toBool());
  }
  CHECK(program.run({x}).equal(expected));
}

TEST_CASE("replaces table lookups at a step with views") {
  const c10::InferenceMode guard;
  Program program(R"(graph(%z : Tensor, %step : int, %table : Tensor, %other : Tensor):
  %none : NoneType = prim::Constant()
  %off : bool = prim::Constant[value=0]()
  %zero : int = prim::Constant[value=0]()
  %one : int = prim::Constant[value=1]()
  %device : Device = prim::device(%z)
  %list : int[] = prim::ListConstruct(%step)
  %index : Tensor = aten::tensor(%list, %none, %device, %off)
  %row : Tensor = aten::index_select(%table, %zero, %index)
  %again : Tensor = aten::index_select(%other, %zero, %index)
  %sum : Tensor = aten::add(%row, %again, %one)
  %pair : int[] = prim::ListConstruct(%step, %zero)
  %indices : Tensor = aten::tensor(%pair, %none, %device, %off)
  %rows : Tensor = aten::index_select(%table, %zero, %indices)
  %y : Tensor = aten::add(%sum, %rows, %one)
  return (%y))",
                  {{"table", random_tensor({10, 4}, 1)}, {"other", random_tensor({10, 4}, 2)}});
  const auto run = [&](int64_t step) {
    torch::jit::Stack stack{at::zeros({1}), step};
    torch::jit::InterpreterState(torch::jit::Code(program.graph, "test")).run(stack);
    return stack.at(0).toTensor();
  };
  const at::Tensor first = run(0), last = run(9);
  CHECK(view_rows(program.graph) == 2);
  program.graph->lint();
  CHECK(program.count("aten::narrow") == 2);
  CHECK(program.count("aten::tensor") == 1);  // the one with two indices
  CHECK(run(0).equal(first));
  CHECK(run(9).equal(last));
}

TEST_CASE("graphs without two branches or with in-place writes are not changed") {
  const auto unchanged = [](const char* text) {
    Program program(text);
    const std::vector<std::string> before = order(*program.graph);
    CHECK(overlap_branches(program.graph, 1) == 0);
    CHECK(order(*program.graph) == before);
  };
  unchanged(R"(graph(%z : Tensor, %hint : Tensor):
  %sin : Tensor = aten::sin(%z)
  %sum : Tensor = aten::mul(%sin, %hint)
  return (%sum))");
  unchanged(R"(graph(%z : Tensor, %hint : Tensor):
  %guided : Tensor = aten::mul(%z, %hint)
  %sin : Tensor = aten::sin_(%z)
  %sum : Tensor = aten::mul(%sin, %guided)
  return (%sum))");
  // A list of tensors cannot be kept alive.
  unchanged(R"(graph(%z : Tensor, %hint : Tensor):
  %zero : int = prim::Constant[value=0]()
  %parts : Tensor[] = aten::unbind(%z, %zero)
  %guided : Tensor = aten::mul(%z, %hint)
  %all : Tensor = aten::stack(%parts, %zero)
  %sum : Tensor = aten::mul(%all, %guided)
  return (%sum))");
}

TEST_CASE("fuses half-precision GroupNorm with its neighbors without changing the result") {
  const c10::InferenceMode guard;
  constexpr const char* kNorms = R"(graph(%x : Tensor, %embedding : Tensor, %weight : Tensor, %bias : Tensor):
  %one : int = prim::Constant[value=1]()
  %groups : int = prim::Constant[value=4]()
  %eps : float = prim::Constant[value=0.001]()
  %off : bool = prim::Constant[value=0]()
  %last : int = prim::Constant[value=-1]()
  %wide : Tensor = aten::unsqueeze(%embedding, %last)
  %wider : Tensor = aten::unsqueeze(%wide, %last)
  %first : Tensor = aten::group_norm(%x, %groups, %weight, %bias, %eps, %off)
  %shifted : Tensor = aten::add(%first, %wider, %one)
  %second : Tensor = aten::group_norm(%shifted, %groups, %weight, %bias, %eps, %off)
  %y : Tensor = aten::silu(%second)
  return (%y))";
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16, at::kFloat}) {
    const auto in_type = [&](const std::vector<int64_t>& sizes, uint64_t seed) {
      return random_tensor(sizes, seed).to(type);
    };
    Program program(kNorms, {{"weight", in_type({16}, 1)}, {"bias", in_type({16}, 2)}});
    const at::Tensor x = in_type({2, 16, 5, 5}, 3), embedding = in_type({2, 16}, 4);
    const at::Tensor expected = program.run({x, embedding});
    int launched = 0;
    const int rewritten = use_device_norms(program.graph, [&](const KernelLaunch&) { ++launched; });
    program.graph->lint();
    CHECK(rewritten == (type == at::kFloat ? 0 : 2));
    static_cast<void>(program.run({x, embedding}));
    CHECK(launched == (type == at::kFloat ? 0 : 4));
    if (type == at::kFloat) continue;
    CHECK(order(*program.graph) == std::vector<std::string>{"aten::unsqueeze", "aten::unsqueeze",
                                                            "diad::device_group_norm",
                                                            "diad::device_group_norm"});
    Program by_operators(kNorms, {{"weight", in_type({16}, 1)}, {"bias", in_type({16}, 2)}});
    REQUIRE(use_device_norms(by_operators.graph, {}) == 2);
    const at::Tensor y = by_operators.run({x, embedding});
    CHECK((y.to(at::kFloat) - expected.to(at::kFloat)).abs().max().item<double>() < 0.05);
  }
}

TEST_CASE(
    "NVRTC compiles the kernels for all architectures of LibTorch's CUDA 13 builds and reports errors") {
  const char* const nvrtc = std::getenv("DIAD_NVRTC");
  SKIP_UNLESS(nvrtc != nullptr, "DIAD_NVRTC names no libnvrtc; npm test does");
  for (const char* architecture : {"sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"}) {
    CAPTURE(architecture);
    const std::vector<char> code = compile_cuda(group_norm_source(), architecture, nvrtc);
    const std::string text(code.begin(), code.end());
    for (const char* kernel : {"sums_f16", "normalize_f16", "sums_bf16", "normalize_bf16"}) {
      CHECK(text.find(std::string(".text.") + kernel) != std::string::npos);
    }
  }
  CHECK_THROWS_WITH_AS(static_cast<void>(compile_cuda("int wrong(", "sm_90", nvrtc)),
                       doctest::Contains("diad.cu(1): error"), std::runtime_error);
  CHECK_THROWS_WITH_AS(static_cast<void>(compile_cuda(group_norm_source(), "sm_1", nvrtc)),
                       doctest::Contains("NVRTC for sm_1"), std::runtime_error);
}

TEST_CASE("reports why NVRTC cannot be loaded") {
  CHECK_THROWS_WITH_AS(static_cast<void>(compile_cuda("", "sm_90", "/nowhere/libnvrtc.so")),
                       doctest::Contains("NVRTC cannot be opened; /nowhere/libnvrtc.so"), std::runtime_error);
}
