// Fuzzes read_torchscript with arbitrary pickles, code and tensor data. The input holds the records and the
// archive is written here, because a mutated zip rarely has valid checksums.
//
// Input: records, each with one byte for its name, three bytes for its length (little-endian) and its
// content.
#include <caffe2/serialize/inline_container.h>

#include <cstdint>
#include <cstdlib>
#include <set>

#include "bundle/torchscript_reader.h"
#include "scratch_folder.h"
#include "support/engine_error.h"

namespace {

constexpr const char* kNames[] = {"data.pkl", "constants.pkl", "code/__torch__.py", "data/0",
                                  "data/1",   "constants/0",   "model.json"};

void write_archive(const std::string& file, const uint8_t* bytes, size_t size) {
  caffe2::serialize::PyTorchStreamWriter writer(file);
  std::set<std::string> written;
  for (size_t at = 0; at + 4 <= size;) {
    const std::string name = kNames[bytes[at] % std::size(kNames)];
    const size_t stated = bytes[at + 1] | size_t{bytes[at + 2]} << 8 | size_t{bytes[at + 3]} << 16;
    at += 4;
    const size_t length = std::min(stated, size - at);
    if (written.insert(name).second) writer.writeRecord(name, bytes + at, length);
    at += length;
  }
  writer.writeEndOfFile();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string file = scratch_folder() / "module.pt";
  write_archive(file, bytes, size);
  try {
    (void)diad::read_torchscript(file, "module.pt");
  } catch (const std::exception&) {  // exceptions of LibTorch pass through the reader
  }
  return 0;
}
