// Tests each CPU graph pass against LibTorch's operators, in double where exactness matters.
#include "cpu/cpu_graph_passes.h"

#include <ATen/TensorOperators.h>
#include <c10/core/InferenceMode.h>

#include <array>
#include <limits>
#include <nlohmann/json.hpp>

#include "cpu/group_norm.h"
#include "cpu/packed_layers.h"
#include "difference.h"
#include "program.h"
#include "random_tensor.h"
#include "runtime/operator_profile.h"
#include "support.h"

namespace {

using namespace diad;

}  // namespace

namespace {

// Upsampling, convolutions, a norm, a linear layer, and the operators that are fused into them.
const char* const kResidualBlock = R"IR(
graph(%x : Tensor, %emb : Tensor, %w1 : Tensor, %b1 : Tensor, %g : Tensor, %o : Tensor, %m : Tensor):
  %none : NoneType = prim::Constant()
  %zero : int = prim::Constant[value=0]()
  %one : int = prim::Constant[value=1]()
  %two : int = prim::Constant[value=2]()
  %three : int = prim::Constant[value=3]()
  %eight : int = prim::Constant[value=4]()
  %no : bool = prim::Constant[value=0]()
  %eps : float = prim::Constant[value=0.0001]()
  %ones : int[] = prim::Constant[value=[1, 1]]()
  %twice : float[] = prim::Constant[value=[2., 2.]]()
  %e1 : Tensor = aten::unsqueeze(%emb, %two)
  %e2 : Tensor = aten::unsqueeze(%e1, %three)
  %h0 : Tensor = aten::conv2d(%x, %w1, %b1, %ones, %ones, %ones, %one)
  %h1 : Tensor = aten::add(%h0, %e2, %one)
  %h2 : Tensor = aten::group_norm(%h1, %eight, %g, %o, %eps, %no)
  %h3 : Tensor = aten::silu(%h2)
  %h4 : Tensor = aten::conv2d(%h3, %w1, %b1, %ones, %ones, %ones, %one)
  %h5 : Tensor = aten::add(%x, %h4, %one)
  %up : Tensor = aten::upsample_nearest2d(%h5, %none, %twice)
  %h6 : Tensor = aten::conv2d(%up, %w1, %b1, %ones, %ones, %ones, %one)
  %h7 : Tensor = aten::relu(%h6)
  %y : Tensor = aten::linear(%h7, %m, %none)
  return (%y))IR";

}  // namespace

TEST_CASE("rewrites the graph of a residual block without changing its result") {
  const c10::InferenceMode guard;
  const at::Tensor w1 = random_tensor({16, 16, 3, 3}, 1) * 0.1, b1 = random_tensor({16}, 2),
                   g = random_tensor({16}, 3);
  const at::Tensor o = random_tensor({16}, 4), m = random_tensor({6, 12}, 5),
                   x = random_tensor({2, 16, 6, 6}, 6), emb = random_tensor({1, 16}, 7);
  Program program(kResidualBlock, {{"w1", w1}, {"b1", b1}, {"g", g}, {"o", o}, {"m", m}});
  const at::Tensor expected = program.run({x, emb});
  const CpuRewrites done = optimize_for_cpu(program.graph);
  CHECK(done.convolutions == 3);
  CHECK(done.upsampled_convolutions == 1);
  CHECK(done.norms == 1);
  CHECK(done.linears == 1);
  for (const char* kind : {"aten::conv2d", "aten::group_norm", "aten::silu", "aten::upsample_nearest2d",
                           "aten::relu", "aten::linear", "aten::add"}) {
    CAPTURE(kind);
    CHECK(program.count(kind) == 0);
  }
  CHECK(difference(program.run({x, emb}), expected) < 2e-5);
}

namespace {

// Operators of a transformer block and an InstanceNorm, each with a variant that must not be rewritten.
const char* const kTransformer = R"IR(
graph(%x : Tensor, %q : Tensor, %p : Tensor, %g : Tensor, %o : Tensor):
  %none : NoneType = prim::Constant()
  %zero : float = prim::Constant[value=0.]()
  %eps : float = prim::Constant[value=0.0001]()
  %scale : float = prim::Constant[value=0.3]()
  %no : bool = prim::Constant[value=0]()
  %yes : bool = prim::Constant[value=1]()
  %two : int = prim::Constant[value=2]()
  %one : int = prim::Constant[value=1]()
  %last : int = prim::Constant[value=-1]()
  %axis : int = prim::Constant[value=2]()
  %shape : int[] = prim::Constant[value=[16]]()
  %exact : str = prim::Constant[value="none"]()
  %tanh : str = prim::Constant[value="tanh"]()
  %n : Tensor = aten::layer_norm(%x, %shape, %g, %o, %eps, %no)
  %n2 : Tensor = aten::layer_norm(%x, %shape, %none, %none, %eps, %no)
  %a : Tensor = aten::scaled_dot_product_attention(%q, %q, %q, %none, %zero, %no, %none, %no)
  %a2 : Tensor = aten::scaled_dot_product_attention(%q, %q, %q, %none, %zero, %no, %scale, %no)
  %a3 : Tensor = aten::scaled_dot_product_attention(%q, %q, %q, %none, %zero, %yes, %none, %no)
  %halves : Tensor[] = aten::chunk(%n, %two, %last)
  %value : Tensor, %gate : Tensor = prim::ListUnpack(%halves)
  %curved : Tensor = aten::gelu(%gate, %exact)
  %h : Tensor = aten::mul(%value, %curved)
  %halves2 : Tensor[] = aten::chunk(%n2, %two, %last)
  %value2 : Tensor, %gate2 : Tensor = prim::ListUnpack(%halves2)
  %curved2 : Tensor = aten::gelu(%gate2, %tanh)
  %h2 : Tensor = aten::mul(%value2, %curved2)
  %curved3 : Tensor = aten::gelu(%value2, %exact)
  %h3 : Tensor = aten::mul(%gate2, %curved3)
  %i : Tensor = aten::instance_norm(%p, %none, %none, %none, %none, %yes, %zero, %eps, %no)
  %s : Tensor = aten::silu(%i)
  %i2 : Tensor = aten::instance_norm(%p, %g, %o, %none, %none, %yes, %zero, %eps, %no)
  %r1 : Tensor = aten::add(%h, %h2, %one)
  %r2 : Tensor = aten::add(%r1, %h3, %one)
  %m : Tensor = aten::sum(%r2, %none)
  %m1 : Tensor = aten::add(%s, %i2, %one)
  %m2 : Tensor = aten::sum(%m1, %none)
  %b1 : Tensor = aten::add(%a, %a2, %one)
  %b2 : Tensor = aten::add(%b1, %a3, %one)
  %b3 : Tensor = aten::add(%b2, %m, %one)
  %y : Tensor = aten::add(%b3, %m2, %one)
  return (%y))IR";

}  // namespace

TEST_CASE("rewrites supported attention, LayerNorm, GEGLU and InstanceNorm and keeps other variants") {
  const c10::InferenceMode guard;
  const at::Tensor x = random_tensor({2, 5, 16}, 1), q = random_tensor({2, 3, 5, 8}, 2),
                   p = random_tensor({2, 16, 4, 4}, 3), g = random_tensor({16}, 4),
                   o = random_tensor({16}, 5);
  Program program(kTransformer, {{"g", g}, {"o", o}});
  const at::Tensor expected = program.run({x, q, p});
  const CpuRewrites done = optimize_for_cpu(program.graph);
  CHECK(done.layer_norms == 1);
  CHECK(done.attentions == 1);
  CHECK(done.gates == 1);
  CHECK(done.instance_norms == 1);
  CHECK(program.count("aten::layer_norm") == 1);
  CHECK(program.count("aten::scaled_dot_product_attention") == 2);
  CHECK(program.count("aten::gelu") == 2);
  CHECK(program.count("aten::instance_norm") == 1);
  CHECK(program.count("aten::silu") == 0);
  CHECK(difference(program.run({x, q, p}), expected) < 1e-4);
  CHECK(optimize_for_cpu(Program(kTransformer, {{"g", g}, {"o", o}}).graph, {.computed_in = at::kBFloat16})
            .attentions == 0);
}

TEST_CASE("rewrites the graph of a residual block in bfloat16 without changing its result") {
  const c10::InferenceMode guard;
  std::vector<std::pair<std::string, at::Tensor>> exact{{"w1", random_tensor({16, 16, 3, 3}, 1) * 0.1},
                                                        {"b1", random_tensor({16}, 2)},
                                                        {"g", random_tensor({16}, 3)},
                                                        {"o", random_tensor({16}, 4)},
                                                        {"m", random_tensor({6, 12}, 5)}};
  std::vector<std::pair<std::string, at::Tensor>> rounded;
  for (auto& [name, value] : exact) {
    value = value.to(at::kBFloat16);
    rounded.emplace_back(name, value);
    value = value.to(at::kFloat);
  }
  Program program(kResidualBlock, rounded);
  CHECK(optimize_for_cpu(program.graph).convolutions == 0);  // the weights have another type than the option
  const CpuRewrites done = optimize_for_cpu(program.graph, {.computed_in = at::kBFloat16});
  CHECK(done.convolutions == 3);
  CHECK(done.norms == 1);
  CHECK(done.linears == 1);
  for (const int64_t images : {2, 1, 2}) {
    const at::Tensor x = random_tensor({images, 16, 6, 6}, 6).to(at::kBFloat16),
                     emb = random_tensor({1, 16}, 7).to(at::kBFloat16);
    const at::Tensor expected = Program(kResidualBlock, exact).run({x.to(at::kFloat), emb.to(at::kFloat)});
    const double plain = difference(Program(kResidualBlock, rounded).run({x, emb}), expected);
    const double packed = difference(program.run({x, emb}), expected);
    CHECK(plain > 0);
    CHECK(packed < 1.5 * plain);
  }
}

TEST_CASE("quantization keeps the graph close to float32 and unsupported layers exact") {
  SKIP_UNLESS(QuantizedConv::available(), "needs AVX-512 VNNI");
  const c10::InferenceMode guard;
  const at::Tensor w1 = random_tensor({16, 16, 3, 3}, 1) * 0.1, b1 = random_tensor({16}, 2),
                   g = random_tensor({16}, 3);
  const at::Tensor o = random_tensor({16}, 4), m = random_tensor({6, 12}, 5),
                   x = random_tensor({2, 16, 6, 6}, 6), emb = random_tensor({1, 16}, 7);
  const std::vector<std::pair<std::string, at::Tensor>> weights{
      {"w1", w1}, {"b1", b1}, {"g", g}, {"o", o}, {"m", m}};
  Program program(kResidualBlock, weights);
  const CpuRewrites done = optimize_for_cpu(program.graph, {.quantized = true});
  CHECK(done.convolutions == 3);
  CHECK(done.linears == 1);
  const at::Tensor expected = Program(kResidualBlock, weights).run({x, emb});
  const double error =
      (program.run({x, emb}) - expected).norm().item<double>() / expected.norm().item<double>();
  CHECK(error > 1e-5);
  CHECK(error < 0.03);

  const std::string exact = R"IR(
graph(%x : Tensor, %w : Tensor, %m : Tensor):
  %none : NoneType = prim::Constant()
  %one : int = prim::Constant[value=1]()
  %ones : int[] = prim::Constant[value=[1, 1]]()
  %a : Tensor = aten::conv2d(%x, %w, %none, %ones, %ones, %ones, %one)
  %y : Tensor = aten::linear(%a, %m, %none)
  return (%y))IR";
  const std::vector<std::pair<std::string, at::Tensor>> few{{"w", random_tensor({8, 4, 3, 3}, 8)},
                                                            {"m", random_tensor({20, 6}, 9)}};
  Program small(exact, few);
  CHECK(optimize_for_cpu(small.graph, {.quantized = true}).convolutions == 1);
  const at::Tensor y = random_tensor({1, 4, 6, 6}, 10);
  CHECK(difference(small.run({y}), Program(exact, few).run({y})) < 2e-5);
}

TEST_CASE("a profile counts calls and operations by operator and kernel") {
  const c10::InferenceMode guard;
  const std::string text = R"IR(
graph(%x : Tensor, %w : Tensor, %m : Tensor):
  %none : NoneType = prim::Constant()
  %one : int = prim::Constant[value=1]()
  %ones : int[] = prim::Constant[value=[1, 1]]()
  %twice : float[] = prim::Constant[value=[2., 2.]]()
  %a : Tensor = aten::conv2d(%x, %w, %none, %ones, %ones, %ones, %one)
  %b : Tensor = aten::upsample_nearest2d(%a, %none, %twice)
  %c : Tensor = aten::conv2d(%b, %w, %none, %ones, %ones, %ones, %one)
  %d : Tensor = aten::sigmoid(%c)
  %e : Tensor = aten::linear(%d, %m, %none)
  %f : Tensor = aten::matmul(%e, %d)
  return (%f))IR";
  Program program(text, {{"w", random_tensor({16, 16, 3, 3}, 1)}, {"m", random_tensor({64, 64}, 2)}});
  optimize_for_cpu(program.graph);
  const at::Tensor x = random_tensor({2, 16, 32, 32}, 3);
  (void)program.run({x});  // selects kernels
  CHECK(end_operator_profile() == "[]");

  start_operator_profile();
  (void)program.run({x});
  (void)program.run({x});
  const nlohmann::json rows = nlohmann::json::parse(end_operator_profile());
  const auto row = [&](const std::string& start) -> nlohmann::json {
    for (const nlohmann::json& one : rows) {
      if (one["operator"].get<std::string>().starts_with(start)) return one;
    }
    return {{"calls", 0}};
  };
  CHECK(rows.size() == 5);
  const nlohmann::json plain = row("convolution 3 x 3 to 32 x 32, "),
                       enlarged = row("convolution 3 x 3 after upsampling to 64 x 64, ");
  const double gflop = 2e-9 * 2 * 16 * 16 * 9 * 32 * 32;  // per run
  for (const auto& [found, expected] : {std::pair{plain, gflop},
                                        {enlarged, 4 * gflop},
                                        {row("linear, 64 rows, "), 2e-9 * 2 * 16 * 64 * 64 * 64}}) {
    CHECK(found["calls"] == 2);
    CHECK(found["gflop"].get<double>() == doctest::Approx(2 * expected));
    CHECK(found["ms"].get<double>() > 0);
  }
  CHECK(row("aten::matmul")["gflop"].get<double>() == doctest::Approx(2 * 2e-9 * 2 * 16 * 64 * 64 * 64));
  CHECK(row("aten::sigmoid, 64 x 64")["gflop"].is_null());
  double last = 1e30;
  for (const nlohmann::json& one : rows) {
    CHECK(one["ms"].get<double>() <= last);
    last = one["ms"].get<double>();
  }
  (void)program.run({x});
  CHECK(end_operator_profile() == "[]");
}

TEST_CASE("keeps graphs with in-place writes, and replaces views of packed layers") {
  const c10::InferenceMode guard;
  // The convolution reads x before the in-place ReLU overwrites it, although its only user comes later.
  Program program(R"IR(
graph(%z : Tensor, %w : Tensor):
  %none : NoneType = prim::Constant()
  %one : int = prim::Constant[value=1]()
  %ones : int[] = prim::Constant[value=[1, 1]]()
  %x : Tensor = aten::neg(%z)
  %y : Tensor = aten::conv2d(%x, %w, %none, %ones, %ones, %ones, %one)
  %h : Tensor = aten::relu_(%x)
  %sum : Tensor = aten::add(%y, %h, %one)
  return (%sum))IR",
                  {{"w", random_tensor({16, 16, 3, 3}, 1) * 0.1}});
  const at::Tensor z = random_tensor({1, 16, 8, 8}, 2), expected = program.run({z});
  CHECK(optimize_for_cpu(program.graph, {}).convolutions == 0);
  CHECK(program.run({z}).equal(expected));

  Program viewed(R"IR(
graph(%x : Tensor, %w : Tensor):
  %none : NoneType = prim::Constant()
  %one : int = prim::Constant[value=1]()
  %ones : int[] = prim::Constant[value=[1, 1]]()
  %flat : int[] = prim::Constant[value=[1, -1]]()
  %y : Tensor = aten::conv2d(%x, %w, %none, %ones, %ones, %ones, %one)
  %v : Tensor = aten::view(%y, %flat)
  return (%v))IR",
                 {{"w", random_tensor({16, 16, 3, 3}, 1) * 0.1}});
  const at::Tensor flat = viewed.run({z});
  CHECK(optimize_for_cpu(viewed.graph, {}).convolutions == 1);
  CHECK(difference(viewed.run({z}), flat) < 1e-5);
}

TEST_CASE("layers with inconsistent constants are left to LibTorch") {
  const c10::InferenceMode guard;
  const auto rewritten = [](const char* stride, const char* padding, const std::vector<int64_t>& bias) {
    Program program(std::string(R"IR(
graph(%x : Tensor, %w : Tensor, %b : Tensor):
  %one : int = prim::Constant[value=1]()
  %ones : int[] = prim::Constant[value=[1, 1]]()
  %stride : int[] = prim::Constant[value=[)IR") +
                        stride + R"IR(]]()
  %padding : int[] = prim::Constant[value=[)IR" +
                        padding + R"IR(]]()
  %y : Tensor = aten::conv2d(%x, %w, %b, %stride, %padding, %ones, %one)
  return (%y))IR",
                    {{"w", random_tensor({16, 16, 3, 3}, 1)}, {"b", random_tensor(bias, 2)}});
    return optimize_for_cpu(program.graph, {}).convolutions;
  };
  CHECK(rewritten("1, 1", "1, 1", {16}) == 1);
  CHECK(rewritten("0, 1", "1, 1", {16}) == 0);
  CHECK(rewritten("1, 1", "1, -1", {16}) == 0);
  CHECK(rewritten("4611686018427387904, 1", "4611686018427387904, 1", {16}) == 0);
  CHECK(rewritten("1, 1", "1, 1", {8}) == 0);
  CHECK(rewritten("1, 1", "1, 1", {16, 1}) == 0);
}

TEST_CASE("unsupported convolutions are not rewritten") {
  const std::string text = R"IR(
graph(%x : Tensor, %v : Tensor, %w : Tensor):
  %none : NoneType = prim::Constant()
  %one : int = prim::Constant[value=1]()
  %two : int = prim::Constant[value=2]()
  %ones : int[] = prim::Constant[value=[1, 1]]()
  %a : Tensor = aten::conv2d(%x, %v, %none, %ones, %ones, %ones, %one)
  %b : Tensor = aten::conv2d(%a, %w, %none, %ones, %ones, %ones, %two)
  %c : Tensor = aten::conv2d(%a, %w, %none, %ones, %ones, %ones, %one)
  return (%b))IR";
  Program program(text, {{"w", random_tensor({4, 2, 3, 3}, 1).to(at::kHalf)}});
  const CpuRewrites done = optimize_for_cpu(program.graph);
  CHECK(done.convolutions == 0);  // weight from an input, groups of 2, half precision
  CHECK(program.count("aten::conv2d") == 2);
}

namespace {

// EfficientNet-Lite's block: expansion with ReLU6, one-sided padding, depthwise convolution with ReLU6,
// projection.
const char* const kInvertedResidual = R"IR(
graph(%x : Tensor, %w1 : Tensor, %b1 : Tensor, %w2 : Tensor, %b2 : Tensor, %w3 : Tensor, %b3 : Tensor):
  %one : int = prim::Constant[value=1]()
  %groups : int = prim::Constant[value=24]()
  %none : NoneType = prim::Constant()
  %mode : str = prim::Constant[value="constant"]()
  %border : int[] = prim::Constant[value=[0, 1, 0, 1]]()
  %ones : int[] = prim::Constant[value=[1, 1]]()
  %twos : int[] = prim::Constant[value=[2, 2]]()
  %zeros : int[] = prim::Constant[value=[0, 0]]()
  %h0 : Tensor = aten::conv2d(%x, %w1, %b1, %ones, %zeros, %ones, %one)
  %h1 : Tensor = aten::relu6(%h0)
  %h2 : Tensor = aten::pad(%h1, %border, %mode, %none)
  %h3 : Tensor = aten::conv2d(%h2, %w2, %b2, %twos, %zeros, %ones, %groups)
  %h4 : Tensor = aten::relu6(%h3)
  %y : Tensor = aten::conv2d(%h4, %w3, %b3, %ones, %zeros, %ones, %one)
  return (%y))IR";

}  // namespace

TEST_CASE("rewrites the graph of an inverted residual without changing its result") {
  const c10::InferenceMode guard;
  const at::Tensor w1 = random_tensor({24, 8, 1, 1}, 1), b1 = random_tensor({24}, 2),
                   w2 = random_tensor({24, 1, 3, 3}, 3);
  const at::Tensor b2 = random_tensor({24}, 4), w3 = random_tensor({8, 24, 1, 1}, 5),
                   b3 = random_tensor({8}, 6);
  const at::Tensor x = random_tensor({2, 8, 8, 8}, 7) * 3;
  Program program(kInvertedResidual,
                  {{"w1", w1}, {"b1", b1}, {"w2", w2}, {"b2", b2}, {"w3", w3}, {"b3", b3}});
  const at::Tensor expected = program.run({x});
  const CpuRewrites done = optimize_for_cpu(program.graph);
  CHECK(done.convolutions == 2);
  CHECK(done.depthwise_convolutions == 1);
  for (const char* kind : {"aten::conv2d", "aten::relu6", "aten::pad"}) {
    CAPTURE(kind);
    CHECK(program.count(kind) == 0);
  }
  CHECK(difference(program.run({x}), expected) < 2e-4);
}
