// Tests the safetensors format: round trips and rejection of damaged files.
#include "bundle/safetensors.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "support.h"

namespace {

using diad::parse_safetensors;
using diad::Safetensors;
using nlohmann::json;

std::vector<uint8_t> file_of(const std::string& header, size_t data_bytes) {
  std::vector<uint8_t> bytes(8 + header.size() + data_bytes);
  const uint64_t length = header.size();
  std::memcpy(bytes.data(), &length, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  for (size_t i = 0; i < data_bytes; ++i) bytes[8 + header.size() + i] = static_cast<uint8_t>(i);
  return bytes;
}

std::string refusal(const std::vector<uint8_t>& bytes) {
  return error_of([&] { (void)parse_safetensors(bytes, "some.safetensors"); });
}

// Returns the error for a header with these tensors and eight bytes of data.
std::string refusal_of(const json& header) { return refusal(file_of(header.dump(), 8)); }

json tensor(const char* dtype, const json& shape, const json& offsets) {
  return {{"dtype", dtype}, {"shape", shape}, {"data_offsets", offsets}};
}

}  // namespace

TEST_CASE("safetensors: round trip") {
  Safetensors content;
  content.tensors = {{"a/half", at::arange(6, at::kFloat).view({2, 3}).to(at::kHalf)},
                     {"b/single", at::arange(4, at::kFloat) / 3},
                     {"c/none", at::zeros({0, 5}, at::kFloat)},
                     {"d/number", at::ones({}, at::kFloat)}};
  content.metadata = {{"format", "test"}, {"text", "\"quoted\" ä"}};
  const std::vector<uint8_t> bytes = diad::serialize_safetensors(content);
  const Safetensors read = parse_safetensors(bytes, "some.safetensors");
  CHECK(read.metadata == content.metadata);
  REQUIRE(read.tensors.size() == 4);
  for (const auto& [name, expected] : content.tensors) {
    const at::Tensor& found = read.tensors.at(name);
    CHECK((found.scalar_type() == expected.scalar_type()));
    CHECK(found.sizes() == expected.sizes());
    CHECK(found.equal(expected));
  }
  CHECK(bytes == diad::serialize_safetensors(read));
}

TEST_CASE("safetensors: writes float32 first and pads the header to a multiple of eight bytes") {
  Safetensors content;
  content.tensors = {{"a", at::ones({1}, at::kHalf)}, {"b", at::ones({1}, at::kFloat)}};
  const std::vector<uint8_t> bytes = diad::serialize_safetensors(content);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  CHECK(length % 8 == 0);
  const std::string header(reinterpret_cast<const char*>(bytes.data()) + 8, length);
  CHECK(json::parse(header) == json{{"a", tensor("F16", {1}, {4, 6})}, {"b", tensor("F32", {1}, {0, 4})}});
  CHECK(std::vector<uint8_t>(bytes.end() - 6, bytes.end()) ==
        std::vector<uint8_t>{0, 0, 0x80, 0x3f, 0, 0x3c});
}

TEST_CASE("safetensors: rejects other types when writing") {
  Safetensors content;
  content.tensors = {{"a", at::ones({1}, at::kDouble)}};
  CHECK(contains(error_of([&] { (void)diad::serialize_safetensors(content); }),
                 "ERR_DIAD_INVALID_ARGUMENT: Expected tensors of half"));
}

TEST_CASE("safetensors: rejects files with an invalid header") {
  CHECK(
      contains(refusal({}),
               "ERR_DIAD_BUNDLE_CORRUPT: some.safetensors: Expected a safetensors file but it has 0 bytes"));
  std::vector<uint8_t> bytes = file_of("{}", 0);
  CHECK(refusal(bytes) == "no error");
  bytes[0] = 3;  // longer than the file
  CHECK(contains(refusal(bytes), "its length is 3"));
  bytes[7] = 0xff;
  CHECK(contains(refusal(bytes),
                 "ERR_DIAD_BUNDLE_CORRUPT: some.safetensors: Expected a header of at most 16 MiB"));
  for (const char* const header : {"", "[]", "{", "null", "{\"a\":", "\xff{}"}) {
    CAPTURE(header);
    CHECK(contains(refusal(file_of(header, 0)), "Expected a JSON object as header"));
  }
  std::string deep = "{\"a\":" + std::string(100000, '[');
  CHECK(contains(refusal(file_of(deep, 0)), "Expected a JSON object as header"));
  const std::string twice = tensor("F32", {1}, {0, 4}).dump();
  CHECK(contains(refusal(file_of("{\"a\":" + twice + ",\"a\":" + twice + "}", 4)),
                 "Expected each tensor's name once"));
}

TEST_CASE("safetensors: rejects tensors that do not fit the data") {
  CHECK(refusal_of({{"a", tensor("F32", {2}, {0, 8})}}) == "no error");
  CHECK(refusal_of({{"a", tensor("F16", {2}, {4, 8})}, {"b", tensor("F32", {1}, {0, 4})}}) == "no error");
  CHECK(contains(refusal_of({{"a", tensor("I64", {1}, {0, 8})}}),
                 "ERR_DIAD_BUNDLE_INVALID: some.safetensors: Expected the dtype F16 or F32"));
  const std::pair<json, const char*> damaged[] = {
      {{{"a", 1}}, "Expected an object for a"},
      {{{"a", {{"dtype", 5}}}}, "Expected a dtype for a"},
      {{{"a", {{"dtype", "F32"}, {"data_offsets", {0, 8}}}}}, "Expected a shape for a"},
      {{{"a", {{"dtype", "F32"}, {"shape", {2}}}}}, "Expected two data_offsets for a"},
      {{{"a", tensor("F32", {2}, {0, 8, 8})}}, "Expected two data_offsets for a"},
      {{{"a", tensor("F32", {2}, {-8, 0})}}, "Expected two data_offsets for a"},
      {{{"a", tensor("F32", {2.0}, {0, 8})}}, "Expected a shape that fits"},
      {{{"a", tensor("F32", {-2}, {0, 8})}}, "Expected a shape that fits"},
      {{{"a", tensor("F32", {3}, {0, 8})}}, "Expected a shape that fits"},
      {{{"a", tensor("F32", {0, 0x8000000000000000U}, {0, 0})}}, "Expected a shape that fits"},
      {{{"a", tensor("F32", {0x80000000U, 0x80000000U, 8}, {0, 8})}}, "Expected a shape that fits"},
      {{{"a", tensor("F32", {1, 1, 1, 1, 1, 1, 1, 1, 1}, {0, 4})}}, "Expected a shape for a"},
      {{{"a", tensor("F32", {2}, {0, 12})}}, "within 8 bytes"},
      {{{"a", tensor("F32", {1}, {8, 4})}}, "within 8 bytes"},
      {{{"a", tensor("F32", {1}, {0, 8})}}, "Expected 4 bytes for a"},
      {{{"a", tensor("F32", {1}, {0, 4})}}, "Expected 4 bytes behind the header but the file has 8"},
      {{{"a", tensor("F32", {1}, {4, 8})}}, "Expected a at byte 0"},
      {{{"a", tensor("F32", {2}, {0, 8})}, {"b", tensor("F32", {1}, {4, 8})}}, "Expected b at byte 8"},
      {{{"__metadata__", 5}, {"a", tensor("F32", {2}, {0, 8})}}, "Expected an object for __metadata__"},
      {{{"__metadata__", {{"x", 5}}}, {"a", tensor("F32", {2}, {0, 8})}},
       "Expected a string for the metadata x"}};
  for (const auto& [header, words] : damaged) {
    CAPTURE(header.dump());
    const std::string told = refusal_of(header);
    CHECK(told.starts_with("ERR_DIAD_BUNDLE_CORRUPT: some.safetensors: "));
    CHECK(contains(told, words));
  }
}

TEST_CASE("safetensors: rejects a file truncated at any byte") {
  Safetensors content;
  content.tensors = {{"a", at::ones({3}, at::kHalf)}, {"b", at::ones({2, 2}, at::kFloat)}};
  const std::vector<uint8_t> bytes = diad::serialize_safetensors(content);
  for (size_t length = 0; length < bytes.size(); ++length) {
    CAPTURE(length);
    CHECK(refusal({bytes.begin(), bytes.begin() + static_cast<int64_t>(length)})
              .starts_with("ERR_DIAD_BUNDLE_CORRUPT"));
  }
}
