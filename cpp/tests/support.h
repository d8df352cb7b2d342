// Support for several test files.
#pragma once

#include <doctest/doctest.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "support/engine_error.h"

// Reads a fixture of little-endian numbers.
template <typename T>
std::vector<T> read_numbers(const std::string& name) {
  std::ifstream stream(std::string(DIAD_FIXTURES) + "/" + name, std::ios::binary | std::ios::ate);
  REQUIRE(stream.good());
  std::vector<T> values(static_cast<size_t>(stream.tellg()) / sizeof(T));
  stream.seekg(0);
  stream.read(reinterpret_cast<char*>(values.data()),
              static_cast<std::streamsize>(values.size() * sizeof(T)));
  return values;
}

// Returns the EngineError that an action throws, as "CODE: message".
template <typename Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const diad::EngineError& error) {
    return std::string(error.code()) + ": " + error.what();
  }
  return "no error";
}

// Skips the rest of a test case if the machine lacks a requirement. scripts/test.mjs counts the printed
// lines.
#define SKIP_UNLESS(condition, reason)                                                              \
  if (!(condition)) {                                                                               \
    std::printf("[skipped] %s: %s\n", doctest::getContextOptions()->currentTest->m_name, (reason)); \
    return;                                                                                         \
  }                                                                                                 \
  static_assert(true)

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}
