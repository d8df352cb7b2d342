// Tests the translation of exceptions.
#include "support/error_translation.h"

#include <new>
#include <stdexcept>
#include <string>
#include <system_error>

#include "support.h"

TEST_CASE("failures: recognizes the out-of-memory messages of LibTorch, oneDNN and CUDA") {
  const auto code_of = [](const char* words) {
    return std::string(diad::describe_failure(std::runtime_error(words)).code);
  };
  for (const char* words : {"[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory",
                            "could not create a primitive",
                            "The following operation failed in the TorchScript interpreter.\nTraceback of "
                            "TorchScript (most recent call last):\n"
                            "RuntimeError: std::bad_alloc",
                            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
                            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
                            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
                            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling",
                            "GET was unable to find an engine to execute this computation"}) {
    CAPTURE(words);
    CHECK(code_of(words) == "ERR_DIAD_OUT_OF_MEMORY");
  }
  CHECK(std::string(diad::describe_failure(std::bad_alloc()).code) == "ERR_DIAD_OUT_OF_MEMORY");
  const std::system_error no_thread(std::make_error_code(std::errc::resource_unavailable_try_again));
  CHECK(std::string(diad::describe_failure(no_thread).code) == "ERR_DIAD_OUT_OF_MEMORY");
  CHECK(code_of("The size of tensor a (3) must match the size of tensor b (4)") == "ERR_DIAD_INTERNAL");
}

TEST_CASE("failures: keeps one line of a TorchScript listing and advises a restart after CUDA errors") {
  const auto told = [](const char* words) {
    return diad::describe_failure(std::runtime_error(words)).message;
  };
  const char* const listed =
      "The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most recent "
      "call last):\n"
      "RuntimeError: CUDA error: an illegal memory access was encountered\nCompile with "
      "`TORCH_USE_CUDA_DSA`\n";
  CHECK(told(listed) ==
        "CUDA error: an illegal memory access was encountered; most CUDA errors cannot be "
        "recovered from: restart the process");
  CHECK(told("The following operation failed in the TorchScript interpreter.\nTraceback of TorchScript (most "
             "recent call last):\n"
             "RuntimeError: Sizes differ") == "Sizes differ");
  CHECK(told("first line\nsecond line") == "first line");
}
