#include "bundle/torchscript_reader.h"

#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/serialization/import_source.h>
#include <torch/csrc/jit/serialization/unpickler.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <unordered_map>
#include <unordered_set>

#include "bundle/operator_allowlist.h"
#include "bundle/pickle_validator.h"
#include "bundle/recursion_limit.h"
#include "support/cancellation.h"
#include "support/engine_error.h"
#include "support/mmap_pool.h"

namespace diad {

namespace {

using c10::IValue;
using caffe2::serialize::PyTorchStreamReader;
using torch::jit::CompilationUnit;
using torch::jit::Module;

constexpr size_t kLargestText = size_t{64} << 20;  // unpacked bytes of all code, and of one pickle
constexpr int64_t kLargestSide = int64_t{1} << 40;
constexpr size_t kDeepestBrackets = 100, kMostOperators = 2000, kDeepestIndent = 200, kMostBranches = 1000;
constexpr int64_t kDeepestCalls = 5000;
constexpr size_t kMostInlined = 2'000'000;  // nodes

[[noreturn]] void invalid(const std::string& what) { throw EngineError(code::kBundleInvalid, what); }
[[noreturn]] void corrupt(const std::string& what) { throw EngineError(code::kBundleCorrupt, what); }

// TorchScript's compiler recurses over expressions and blocks: reject sources that would overflow its stack.
void check_source(std::string_view source, const std::string& where) {
  // check_class is too late: for a hook that is listed but not defined, LibTorch compiles uninitialized
  // memory.
  if (source.find("__forward_hooks__") != source.npos ||
      source.find("__forward_pre_hooks__") != source.npos) {
    invalid(where + " has forward hooks, which are not allowed in a bundle");
  }
  size_t brackets = 0, operators = 0, branches = 0;
  bool line_start = true;
  for (size_t i = 0; i < source.size(); ++i) {
    const char c = source[i];
    if (line_start) {
      const size_t text = source.find_first_not_of(' ', i);
      if (text != std::string_view::npos && text - i > kDeepestIndent)
        invalid(where + " has blocks nested too deeply");
      line_start = false;
    }
    if (c == '(' || c == '[' || c == '{') ++brackets;
    if ((c == ')' || c == ']' || c == '}') && brackets > 0) --brackets;
    if (std::strchr("+-*/%~<>=!|&^@.", c) != nullptr) ++operators;
    const auto word = [&](std::string_view name) {
      return source.substr(i, name.size()) == name &&
             (i == 0 || std::isalnum(static_cast<unsigned char>(source[i - 1])) == 0);
    };
    if (word("if ") || word("not ") || word("and ") || word("or ")) ++operators;
    if (word("elif ")) ++branches;
    if (c == '\n') {
      line_start = true;
      if (brackets == 0) operators = 0;
    }
    if (brackets > kDeepestBrackets || operators > kMostOperators)
      invalid(where + " has an expression nested too deeply");
    if (branches > kMostBranches) invalid(where + " has too many branches");
  }
}

// Checks the class of an object before the object is created.
void check_class(const c10::ClassType& type, const std::string& file) {
  const std::string name = type.name() ? type.name()->qualifiedName() : "a class without a name";
  if (!type.is_module())
    invalid(file + ": an object of " + name + ", which is not a module, is not allowed in a bundle");
  for (const char* method : {"__setstate__", "__getstate__"}) {
    if (type.findMethod(method) != nullptr)
      invalid(file + ": the operator " + method + " of " + name + " would run while the file is loaded");
  }
  if (!type.getForwardHooks().empty() || !type.getForwardPreHooks().empty()) {
    invalid(file + ": " + name + " has forward hooks, which are not allowed in a bundle");
  }
}

class Archive {
 public:
  Archive(const std::filesystem::path& path, const std::string& name)
      : file_(name),
        size_(std::filesystem::file_size(path)),
        reader_(path.string()),
        unit_(std::make_shared<CompilationUnit>()),
        importer_(
            unit_, &constants_, [this](const std::string& qualifier) { return source(qualifier); },
            reader_.version()) {
    // The format before version 1.2 runs its own code when it is read.
    if (reader_.hasRecord("model.json"))
      invalid(file_ + " is in TorchScript's old format; export the bundle again");
  }

  Module read() {
    check_sources();
    const IValue constants = unpickle("constants");
    if (!constants.isTuple()) corrupt(file_ + ": constants.pkl does not hold a tuple");
    check_value(constants);
    constants_ = constants.toTupleRef().elements().vec();
    const IValue root = unpickle("data");
    if (!root.isObject()) corrupt(file_ + ": data.pkl does not hold a module");
    check_value(root);
    return Module(root.toObject());
  }

 private:
  // Checks all sources before any of them is compiled.
  void check_sources() {
    std::vector<std::pair<std::string, std::string>> sources;
    constexpr std::string_view kFolder = "code/", kEnding = ".py";
    size_t bytes = 0;
    for (const std::string& name : reader_.getAllRecords()) {
      if (!name.starts_with(kFolder) || !name.ends_with(kEnding)) continue;
      check_cancelled();
      std::string space = name.substr(kFolder.size(), name.size() - kFolder.size() - kEnding.size());
      std::replace(space.begin(), space.end(), '/', '.');
      sources.emplace_back(std::move(space), record(name));
      check_source(sources.back().second, file_ + ": " + name);
      bytes += sources.back().second.size();
      if (bytes > kLargestText) invalid(file_ + " has more than 64 MiB of code");
    }
    const int64_t deepest = max_call_depth(sources);
    if (deepest < 0) invalid(file_ + " has classes that refer to each other in a cycle");
    if (deepest > kDeepestCalls) invalid(file_ + " has calls nested too deeply");
  }

  std::string record(const std::string& name) {
    if (!reader_.hasRecord(name)) corrupt(file_ + " has no " + name);
    if (reader_.getRecordSize(name) > kLargestText) invalid(file_ + ": " + name + " is larger than 64 MiB");
    const auto [bytes, size] = reader_.getRecord(name);
    return {static_cast<const char*>(bytes.get()), size};
  }

  std::shared_ptr<torch::jit::Source> source(const std::string& qualifier) {
    check_cancelled();
    std::string name = "code/" + qualifier;
    std::replace(name.begin(), name.end(), '.', '/');
    name += ".py";
    if (!reader_.hasRecord(name)) return nullptr;
    std::string text = record(name);
    return std::make_shared<torch::jit::Source>(std::move(text), name, 1);
  }

  IValue unpickle(const std::string& archive) {
    const std::string pickle = record(archive + ".pkl");
    check_pickle(pickle, file_ + ": " + archive + ".pkl");
    size_t at = 0;
    const auto read = [&](char* to, size_t count) {
      const size_t taken = std::min(count, pickle.size() - at);
      std::memcpy(to, pickle.data() + at, taken);
      at += taken;
      return taken;
    };
    const auto resolve = [this](const c10::QualifiedName& name) {
      return c10::StrongTypePtr(unit_, importer_.loadType(name));
    };
    const auto load = [this](const c10::StrongTypePtr& type, const IValue& state) {
      return object(type, state);
    };
    const auto storage = [this, archive](const std::string& key) {
      return tensor_bytes(archive + "/" + key);
    };
    torch::jit::Unpickler unpickler(read, resolve, load, storage, c10::Device(c10::kCPU));
    unpickler.set_version(reader_.version());
    return unpickler.parse_ivalue();
  }

  c10::intrusive_ptr<c10::ivalue::Object> object(const c10::StrongTypePtr& type, const IValue& state) {
    const auto cls = type.type_->cast<c10::ClassType>();
    if (!cls) corrupt(file_ + ": an object of " + type.type_->repr_str() + ", which is not a class");
    check_class(*cls, file_);
    if (!state.isGenericDict()) corrupt(file_ + ": a module whose attributes are not a dictionary");
    const auto attributes = state.toGenericDict();
    auto made = c10::ivalue::Object::create(type, cls->numAttributes());
    for (size_t i = 0; i < cls->numAttributes(); ++i) {
      const std::string& name = cls->getAttributeName(i);
      const auto found = attributes.find(name);
      if (found == attributes.end()) corrupt(file_ + ": a module lacks its attribute " + name);
      if (!found->value().type()->isSubtypeOf(*cls->getAttribute(i))) {
        corrupt(file_ + ": Expected " + cls->getAttribute(i)->repr_str() + " for the attribute " + name +
                " but received " + found->value().type()->repr_str());
      }
      made->setSlot(i, found->value());
    }
    return made;
  }

  at::DataPtr tensor_bytes(const std::string& name) {
    check_cancelled();
    if (!reader_.hasRecord(name)) corrupt(file_ + " has no " + name);
    const size_t size = reader_.getRecordSize(name);
    // Weights are stored uncompressed: their total size cannot exceed the file size, except for a few shared
    // ones.
    tensor_bytes_ += size;
    if (size > size_ || tensor_bytes_ > 4 * size_)
      invalid(file_ + ": its tensors unpack to more than the file holds");
    auto [bytes, length] = reader_.getRecord(name, mapped_allocator());
    storages_[bytes.get()] = length;
    return std::move(bytes);
  }

  // The unpickler does not check lengths, offsets and strides.
  void check_tensor(const at::Tensor& tensor) const {
    if (!tensor.defined()) return;
    if (tensor.layout() != c10::kStrided || !tensor.device().is_cpu() || tensor.is_quantized()) {
      invalid(file_ + ": a tensor that is not dense, on the CPU and unquantized is not allowed in a bundle");
    }
    const auto& storage = tensor.storage();
    const auto known = storages_.find(storage.data());
    const size_t held = known == storages_.end() ? 0 : known->second;
    const auto limit = static_cast<int64_t>(held);  // in elements: an upper bound for every type
    bool fits = storage.nbytes() <= held && tensor.storage_offset() >= 0 && tensor.storage_offset() <= limit;
    bool empty = false;
    int64_t last = tensor.storage_offset();
    for (int64_t d = 0; d < tensor.dim() && fits; ++d) {
      const int64_t size = tensor.size(d), stride = tensor.stride(d);
      fits = size >= 0 && stride >= 0 && size <= kLargestSide;
      empty = empty || size == 0;
      const int64_t steps = std::max<int64_t>(size - 1, 0);
      fits = fits && (stride == 0 || steps <= (limit - last) / stride);
      if (fits) last += steps * stride;
    }
    const auto element = static_cast<int64_t>(tensor.element_size());
    if (fits && !empty) fits = last < limit / element;
    if (!fits) corrupt(file_ + ": a tensor extends beyond its stored bytes");
  }

  void check_value(const IValue& value) {
    if (value.isTensor()) return check_tensor(value.toTensor());
    if (value.isInt() || value.isDouble() || value.isBool() || value.isString() || value.isNone() ||
        value.isDevice())
      return;
    if (!checked_.insert(value).second) return;
    if (value.isTuple()) {
      for (const IValue& element : value.toTupleRef().elements()) check_value(element);
    } else if (value.isList()) {
      for (const IValue& element : value.toListRef()) check_value(element);
    } else if (value.isGenericDict()) {
      for (const auto& entry : value.toGenericDict()) {
        check_value(entry.key());
        check_value(entry.value());
      }
    } else if (value.isObject()) {
      for (const IValue& slot : value.toObjectRef().slots()) check_value(slot);
    } else {
      invalid(file_ + ": a value of the kind " + value.tagKind() + " is not allowed in a bundle");
    }
  }

  const std::string file_;
  const size_t size_;
  PyTorchStreamReader reader_;
  std::shared_ptr<CompilationUnit> unit_;
  std::vector<IValue> constants_;
  torch::jit::SourceImporter importer_;
  std::unordered_map<const void*, size_t> storages_;  // bytes read, by address
  std::unordered_set<IValue, IValue::HashIdentityIValue, IValue::CompIdentityIValues> checked_;
  size_t tensor_bytes_ = 0;
};

// Counts operators after inlining: a chain of functions that each call the next one twice grows
// exponentially.
class InlinedSize {
 public:
  explicit InlinedSize(std::string file) : file_(std::move(file)) {}

  size_t of(torch::jit::Function& function) {
    const auto [found, is_new] = known_.try_emplace(&function, 0);
    if (!is_new) return found->second;
    const size_t size = of(torch::jit::toGraphFunction(function).graph()->block());
    return known_[&function] = size;
  }

 private:
  size_t of(torch::jit::Block* block) {
    size_t size = 0;
    for (torch::jit::Node* node : block->nodes()) {
      ++size;
      for (torch::jit::Block* inner : node->blocks()) size += of(inner);
      if (torch::jit::GraphFunction* const called = torch::jit::tryToGraphFunction(node)) size += of(*called);
      if (size > kMostInlined)
        invalid(file_ + " has functions that inline to more than " + std::to_string(kMostInlined) +
                " operators");
    }
    return size;
  }

  std::string file_;
  std::unordered_map<const torch::jit::Function*, size_t> known_;
};

}  // namespace

Module read_torchscript(const std::filesystem::path& file, const std::string& name) {
  char magic[4] = {};
  std::ifstream(file, std::ios::binary).read(magic, sizeof magic);
  if (std::memcmp(magic, "PK\3\4", sizeof magic) != 0) corrupt(name + " is not a TorchScript archive");
  Module module = Archive(file, name).read();
  require_allowed_operators(module, name);
  InlinedSize size(name);
  for (const torch::jit::Method& method : module.get_methods()) static_cast<void>(size.of(method.function()));
  return module;
}

}  // namespace diad
