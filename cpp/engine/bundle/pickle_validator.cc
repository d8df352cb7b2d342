#include "bundle/pickle_validator.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "support/engine_error.h"

namespace diad {

namespace {

constexpr size_t kDeepest = 256;  // nesting of containers and modules

constexpr std::array<std::string_view, 10> kStorages{
    "FloatStorage", "HalfStorage",  "BFloat16Storage", "DoubleStorage", "LongStorage",
    "IntStorage",   "ShortStorage", "CharStorage",     "ByteStorage",   "BoolStorage"};
constexpr std::array<std::string_view, 5> kListBuilders{
    "build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag"};

template <size_t N>
bool among(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// What the validator knows about a value on the unpickler's stack.
struct Value {
  enum class Kind { kPlain, kText, kStorageType, kStorageAddress, kConstructor };
  Kind kind = Kind::kPlain;
  size_t depth = 0;
};

class PickleWalk {
 public:
  PickleWalk(std::string_view bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  void run() {
    if (byte() != 0x80 || byte() != 2) broken("is not a pickle of protocol 2");
    while (step()) {
    }
    if (stack_.size() != 1 || !marks_.empty()) broken("does not leave exactly one value");
  }

 private:
  using Kind = Value::Kind;

  [[noreturn]] void broken(const std::string& what) const {
    throw EngineError(code::kBundleCorrupt, where_ + " " + what + " (byte " + std::to_string(at_) + ")");
  }
  [[noreturn]] void refused(const std::string& what) const {
    throw EngineError(code::kBundleInvalid, where_ + " holds " + what);
  }

  std::string_view take(size_t count) {
    if (count > bytes_.size() - at_) broken("is truncated");
    at_ += count;
    return bytes_.substr(at_ - count, count);
  }
  uint8_t byte() { return static_cast<uint8_t>(take(1)[0]); }
  uint32_t little_endian(size_t count) {
    uint32_t value = 0;
    const std::string_view digits = take(count);
    for (size_t i = count; i-- > 0;) value = value << 8 | static_cast<uint8_t>(digits[i]);
    return value;
  }
  std::string_view line() {
    const size_t end = bytes_.find('\n', at_);
    if (end == std::string_view::npos) broken("is truncated");
    const std::string_view text = take(end - at_);
    take(1);
    return text;
  }

  void push(Kind kind = Kind::kPlain, size_t depth = 0) {
    if (depth > kDeepest) refused("values nested deeper than " + std::to_string(kDeepest) + " levels");
    stack_.push_back({kind, depth});
  }
  // Values above the last mark belong to that mark: nothing below it can be popped.
  void require(size_t count) const {
    const size_t floor = marks_.empty() ? 0 : marks_.back();
    if (stack_.size() - floor < count) broken("pops a value from an empty stack");
  }
  Value pop() {
    require(1);
    const Value top = stack_.back();
    stack_.pop_back();
    return top;
  }
  std::vector<Value> pop_to_mark() {
    if (marks_.empty()) broken("has an instruction without its mark");
    const size_t start = marks_.back();
    marks_.pop_back();
    std::vector<Value> values(stack_.begin() + static_cast<std::ptrdiff_t>(start), stack_.end());
    stack_.resize(start);
    return values;
  }

  void push_tuple(const std::vector<Value>& values) {
    const bool is_address = values.size() == 5 && values[0].kind == Kind::kText &&
                            values[1].kind == Kind::kStorageType && values[2].kind == Kind::kText &&
                            values[3].kind == Kind::kText;
    push(is_address ? Kind::kStorageAddress : Kind::kPlain, 1 + deepest(values));
  }
  void tuple_of(size_t count) {
    require(count);
    const std::vector<Value> values(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    push_tuple(values);
  }
  static size_t deepest(const std::vector<Value>& values) {
    size_t depth = 0;
    for (const Value& value : values) depth = std::max(depth, value.depth);
    return depth;
  }
  // APPENDS, SETITEMS: add the values above the mark to the container below it.
  void fill_container(bool pairs) {
    const std::vector<Value> values = pop_to_mark();
    if (pairs && values.size() % 2 != 0) broken("has a key without a value");
    const Value container = pop();
    push(container.kind, std::max(container.depth, 1 + deepest(values)));
  }

  void remember(size_t slot) {
    require(1);
    if (slot > bytes_.size()) broken("uses a memo slot beyond its length");
    if (slot >= memo_.size()) memo_.resize(slot + 1);
    memo_[slot] = {stack_.back(), true};
  }
  void recall(size_t slot) {
    if (slot >= memo_.size() || !memo_[slot].set) broken("reads a memo slot that was never written");
    push(memo_[slot].value.kind, memo_[slot].value.depth);
  }

  void global() {
    const std::string_view module = line(), name = line();
    const auto is = [&](std::string_view m, std::string_view n) { return module == m && name == n; };
    if (module == "torch" && among(kStorages, name)) return push(Kind::kStorageType);
    const bool is_module =
        module.starts_with("__torch__") && module.find("torch.classes") == std::string_view::npos;
    if (is_module || is("torch._utils", "_rebuild_tensor_v2") || is("collections", "OrderedDict") ||
        (module == "torch.jit._pickle" && among(kListBuilders, name))) {
      return push(Kind::kConstructor);
    }
    refused("the constructor " + std::string(module) + "." + std::string(name) +
            ", which is not allowed in a bundle");
  }

  // Processes one opcode; returns false after the last.
  bool step() {
    switch (const uint8_t opcode = byte()) {
      case '.':  // STOP
        return false;
      case '(':  // MARK
        marks_.push_back(stack_.size());
        break;
      case ')':  // EMPTY_TUPLE
      case ']':  // EMPTY_LIST
      case '}':  // EMPTY_DICT
        push(Kind::kPlain, 1);
        break;
      case 'N':   // NONE
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        push();
        break;
      case 'K':  // BININT1
        take(1);
        push();
        break;
      case 'M':  // BININT2
        take(2);
        push();
        break;
      case 'J':  // BININT
        take(4);
        push();
        break;
      case 'G':  // BINFLOAT
        take(8);
        push();
        break;
      case 0x8a:  // LONG1
        if (byte() != 8) broken("has an integer that is not 8 bytes long");
        take(8);
        push();
        break;
      case 'X':  // BINUNICODE
        take(little_endian(4));
        push(Kind::kText);
        break;
      case 'q':  // BINPUT
        remember(byte());
        break;
      case 'r':  // LONG_BINPUT
        remember(little_endian(4));
        break;
      case 'h':  // BINGET
        recall(byte());
        break;
      case 'j':  // LONG_BINGET
        recall(little_endian(4));
        break;
      case 't':  // TUPLE
        push_tuple(pop_to_mark());
        break;
      case 0x85:  // TUPLE1
      case 0x86:  // TUPLE2
      case 0x87:  // TUPLE3
        tuple_of(opcode - 0x84u);
        break;
      case 'e':  // APPENDS
        fill_container(false);
        break;
      case 'u':  // SETITEMS
        fill_container(true);
        break;
      case 'c':  // GLOBAL
        global();
        break;
      case 0x81:  // NEWOBJ: keeps the constructor, pops its empty tuple
        pop();
        break;
      case 'b':  // BUILD
      case 'R':  // REDUCE
      {
        const Value argument = pop();
        if (pop().kind != Kind::kConstructor) broken("calls a value that is not a constructor");
        push(Kind::kPlain, argument.depth + 1);
        break;
      }
      case 'Q':  // BINPERSID
        if (pop().kind != Kind::kStorageAddress)
          broken("reads a storage without its type, key, device and length");
        push();
        break;
      default:
        refused("the pickle opcode " + std::to_string(opcode) + ", which is not allowed in a bundle");
    }
    return true;
  }

  struct Memo {
    Value value;
    bool set = false;
  };

  const std::string_view bytes_;
  const std::string& where_;
  size_t at_ = 0;
  std::vector<Value> stack_;
  std::vector<size_t> marks_;
  std::vector<Memo> memo_;
};

}  // namespace

void check_pickle(std::string_view bytes, const std::string& where) { PickleWalk(bytes, where).run(); }

}  // namespace diad
