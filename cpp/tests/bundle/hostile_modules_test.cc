// Tests that disallowed TorchScript files are rejected before any of their code runs.
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <caffe2/serialize/inline_container.h>
#include <unistd.h>

#include <filesystem>
#include <functional>

#include "bundle/operator_allowlist.h"
#include "bundle/pickle_validator.h"
#include "bundle/torchscript_reader.h"
#include "support.h"

namespace fs = std::filesystem;
using torch::jit::Module;

namespace {

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& name)
      : path_(fs::temp_directory_path() / ("diad-" + std::to_string(getpid()) + "-" + name)) {}
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Returns a module with one weight of four numbers.
Module module_with(const std::string& source) {
  Module module(c10::QualifiedName("__torch__.M"));
  module.register_parameter("weight", at::ones({4}), false);
  module.define(source);
  return module;
}

std::string refusal_of(const Module& module) {
  const TemporaryFile file("hostile.pt");
  module.save(file.path().string());
  return error_of([&] { (void)diad::read_torchscript(file.path(), "decoder.pt"); });
}

const std::string kGood = "def forward(self, x):\n  return torch.relu(x + self.weight)\n";

// Changes one record in the archive of a valid module and returns the resulting error.
std::string refusal_of_changed(const std::string& record, const std::function<void(std::string&)>& change) {
  const TemporaryFile good("good.pt"), changed("changed.pt");
  module_with(kGood).save(good.path().string());
  caffe2::serialize::PyTorchStreamReader reader(good.path().string());
  {
    caffe2::serialize::PyTorchStreamWriter writer(changed.path().string());
    for (const std::string& name : reader.getAllRecords()) {
      if (name == "version" || name.starts_with(".data/")) continue;  // written by the writer itself
      const auto [bytes, size] = reader.getRecord(name);
      std::string content(static_cast<const char*>(bytes.get()), size);
      if (name == record) change(content);
      writer.writeRecord(name, content.data(), content.size());
    }
    writer.writeEndOfFile();
  }
  return error_of([&] { (void)diad::read_torchscript(changed.path(), "decoder.pt"); });
}

void replace(std::string& text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("TorchScript: reads and runs a valid module") {
  const TemporaryFile file("plain.pt");
  module_with(kGood).save(file.path().string());
  Module read = diad::read_torchscript(file.path(), "decoder.pt");
  const at::Tensor y = read.forward({at::tensor({-3.0f, -1.0f, 0.0f, 2.0f})}).toTensor();
  CHECK(at::equal(y, at::tensor({0.0f, 0.0f, 1.0f, 3.0f})));
}

TEST_CASE("TorchScript: rejects operators that are not on the allowlist by name") {
  const std::pair<const char*, const char*> cases[] = {
      {"def forward(self, x):\n  return torch.from_file('/etc/passwd', False, 4)\n", "aten::from_file"},
      {"def forward(self, x):\n  torch.save(x, '/tmp/never-written')\n  return x\n", "aten::save"},
      {"def forward(self, x):\n  print(x)\n  return x\n", "prim::Print"},
      {"def forward(self, x):\n  while True:\n    x = x + 1\n  return x\n", "prim::Loop"},
      {"def forward(self, x):\n  return torch.as_strided(x, [1], [1], 100)\n", "aten::as_strided"},
      {"def forward(self, x):\n  return torch.empty([4])\n", "aten::empty"},
      {"def forward(self, x):\n  return torch.rand([4])\n", "aten::rand"},
      {"def forward(self, x):\n  self.weight = x\n  return x\n", "prim::SetAttr"},
  };
  for (const auto& [source, name] : cases) {
    CAPTURE(name);
    const std::string refusal = refusal_of(module_with(source));
    CHECK(contains(refusal, "ERR_DIAD_BUNDLE_INVALID: decoder.pt: the function forward uses the operator " +
                                std::string(name)));
  }
}

TEST_CASE("TorchScript: checks nested blocks, all methods and submodules") {
  CHECK(contains(refusal_of(module_with("def forward(self, x):\n  if bool(x.sum() > 0):\n    if bool(x.sum() "
                                        "> 1):\n      print(x)\n  return x\n")),
                 "prim::Print"));
  Module other = module_with(kGood);
  other.define("def never_called(self, x):\n  print(x)\n  return x\n");
  CHECK(contains(refusal_of(other), "the function never_called uses the operator prim::Print"));
  Module outer(c10::QualifiedName("__torch__.Outer"));
  Module inner(c10::QualifiedName("__torch__.Inner"));
  inner.define("def forward(self, x):\n  torch.save(x, '/tmp/never-written')\n  return x\n");
  outer.register_module("inner", inner);
  outer.define("def forward(self, x):\n  return self.inner.forward(x)\n");
  CHECK(contains(refusal_of(outer), "aten::save"));
}

TEST_CASE("TorchScript: __setstate__ never runs") {
  const TemporaryFile witness("witness");
  Module module(c10::QualifiedName("__torch__.Restored"));
  module.register_parameter("weight", at::ones({4}), false);
  module.register_attribute("training", c10::BoolType::get(), false);
  module.define(kGood);
  module.define("def __getstate__(self):\n  return (self.weight, self.training)\n");
  module.define("def __setstate__(self, state: Tuple[Tensor, bool]):\n  torch.save(state[0], '" +
                witness.path().string() + "')\n  self.weight = state[0]\n  self.training = state[1]\n");
  const std::string refusal = refusal_of(module);
  CHECK(contains(
      refusal,
      "ERR_DIAD_BUNDLE_INVALID: decoder.pt: the operator __setstate__ of __torch__.Restored would run"));
  CHECK_FALSE(fs::exists(witness.path()));
}

TEST_CASE("TorchScript: checks lengths, sizes and offsets of tensors") {
  CHECK(refusal_of_changed("data/0", [](std::string&) {}) == "no error");
  const std::string beyond = "ERR_DIAD_BUNDLE_CORRUPT: decoder.pt: a tensor extends beyond its stored bytes";
  CHECK(refusal_of_changed("data/0", [](std::string& bytes) { bytes.resize(8); }) == beyond);
  // The size (4,) as MARK, BININT1 4, TUPLE. LibTorch 2.13 detects this itself and throws its own error.
  std::string oversized = "an error of LibTorch's";
  try {
    oversized =
        refusal_of_changed("data.pkl", [](std::string& pickle) { replace(pickle, "(K\x04t", "(K\x40t"); });
  } catch (const c10::Error& error) {
    CHECK(contains(error.what_without_backtrace(), "storage"));
    oversized = beyond;
  }
  CHECK(oversized == beyond);
}

TEST_CASE("TorchScript: rejects a damaged pickle before LibTorch reads it") {
  CHECK(
      contains(refusal_of_changed("data.pkl", [](std::string& pickle) { pickle.resize(pickle.size() / 2); }),
               "is truncated"));
  CHECK(contains(refusal_of_changed("data.pkl",
                                    [](std::string& pickle) {
                                      replace(pickle, "torch._utils\n_rebuild_tensor_v2", "posix\nsystem");
                                    }),
                 "ERR_DIAD_BUNDLE_INVALID: decoder.pt: data.pkl holds the constructor posix.system, which is "
                 "not allowed"));
  CHECK(contains(
      refusal_of_changed(
          "data.pkl", [](std::string& pickle) { replace(pickle, "c__torch__", "c__torch__.torch.classes"); }),
      "torch.classes"));
  CHECK(contains(
      refusal_of_changed("data.pkl", [](std::string& pickle) { pickle.insert(pickle.begin() + 2, '0'); }),
      "the pickle opcode 48"));
}

TEST_CASE("pickle: requires operands to exist, with the right kind and a bounded depth") {
  const auto refusal = [](const std::string& body) {
    return error_of([&] { diad::check_pickle(std::string("\x80\x02", 2) + body, "p"); });
  };
  CHECK(refusal("N.") == "no error");
  CHECK(refusal("(K\x01K\x02t.") == "no error");
  CHECK(contains(refusal("."), "does not leave exactly one value"));
  CHECK(contains(refusal("t."), "has an instruction without its mark"));
  CHECK(contains(refusal("}(Nu."), "a key without a value"));
  CHECK(contains(refusal("N(\x85."), "a value from an empty stack"));  // values below a mark cannot be popped
  CHECK(contains(refusal("K\x01NR."), "a value that is not a constructor"));
  CHECK(contains(refusal("(X\x01\1\1\1"), "is truncated"));
  CHECK(contains(refusal("Nr\xff\xff\xff\xff."), "memo slot beyond"));
  CHECK(contains(refusal("h\x05."), "never written"));
  CHECK(contains(refusal("NQ."), "without its type"));
  CHECK(contains(refusal("N" + std::string(300, '\x85') + "."), "nested deeper than 256"));
  CHECK(contains(refusal("N"), "is truncated"));
}

TEST_CASE("TorchScript: rejects source that would overflow the compiler's stack") {
  const auto refusal = [](const std::string& expression) {
    return refusal_of_changed("code/__torch__.py", [&](std::string& source) {
      replace(source, "return ", "return " + expression);
    });
  };
  CHECK(contains(refusal(std::string(100000, '(')), "nested too deeply"));
  CHECK(contains(refusal(std::string(100000, '-')), "nested too deeply"));
}

TEST_CASE("TorchScript: rejects calls that are nested too deeply or inline to too many operators") {
  // forward calls the first of `count` methods, and each method calls the next one in `expression`, where #
  // stands for its name.
  const auto with_methods = [](int count, const std::string& expression) {
    return refusal_of_changed("code/__torch__.py", [&](std::string& source) {
      const size_t begin = source.find("self: ") + 6;
      const std::string type = source.substr(begin, source.find(',', begin) - begin);
      for (int i = 0; i <= count; ++i) {
        std::string body = i == count ? "x" : expression;
        const std::string next = "(self).m" + std::to_string(i + 1);
        for (size_t at = body.find('#'); at != body.npos; at = body.find('#')) body.replace(at, 1, next);
        source += "  def m" + std::to_string(i) + "(self: " + type +
                  ",\n    x: Tensor) -> Tensor:\n    return " + body + "\n";
      }
      replace(source, "return ", "return (self).m0(");
      source.insert(source.find('\n', source.find("(self).m0(")), ")");
    });
  };
  CHECK(with_methods(100, "#(x)") == "no error");
  CHECK(contains(with_methods(2000, "#(x)"),
                 "ERR_DIAD_BUNDLE_INVALID: decoder.pt has calls nested too deeply"));
  CHECK(with_methods(8, "torch.add(#(x), #(x))") == "no error");
  CHECK(contains(with_methods(60, "torch.add(#(x), #(x))"),
                 "ERR_DIAD_BUNDLE_INVALID: decoder.pt has functions that inline to more than"));
}

TEST_CASE("TorchScript: rejects hooks that are listed but not defined before LibTorch compiles the class") {
  for (const std::string list : {"__forward_hooks__", "__forward_pre_hooks__"}) {
    const auto list_hook = [&](std::string& source) {
      replace(source, "  __buffers__", "  " + list + " = [\"gone\", ]\n  __buffers__");
    };
    CHECK(
        contains(refusal_of_changed("code/__torch__.py", list_hook), "forward hooks, which are not allowed"));
  }
}

TEST_CASE("TorchScript: rejects other formats") {
  const TemporaryFile file("other.pt");
  std::ofstream(file.path(), std::ios::binary) << "\x80\x02}q.";
  CHECK(contains(error_of([&] { (void)diad::read_torchscript(file.path(), "decoder.pt"); }),
                 "decoder.pt is not a TorchScript archive"));
}
