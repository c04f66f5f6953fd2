// The few functions of ONNX Runtime's C API that onnx.cpp calls, so that the shared library of the Python
// package is all it takes to build. The API is one table of function pointers, which only ever grows at its
// end: the positions are those of every version. With ONNX Runtime's own headers, use those instead.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace ort {

struct Base {
    void* const* (*get_api)(uint32_t version);
    const char* (*get_version)();
};

constexpr uint32_t kVersion = 17;
constexpr int kWarning = 2, kFloat = 1, kArenaAllocator = 1, kDefaultMemory = 0;

enum Position : size_t {
    kGetErrorMessage = 2, kCreateEnv = 3, kCreateSession = 7, kRun = 9, kCreateSessionOptions = 10,
    kGetInputName = 36, kGetOutputName = 37, kCreateTensorWithData = 49, kGetTensorData = 51,
    kGetDimensionsCount = 61, kGetDimensions = 62, kGetTensorTypeAndShape = 65, kCreateCpuMemoryInfo = 69,
    kGetAllocator = 78,
};

}  // namespace ort

extern "C" const ort::Base* OrtGetApiBase();

namespace ort {

class Api {
  public:
    Api() : table_(OrtGetApiBase()->get_api(kVersion)) {}

    // Call the function at a position; it returns a status, which is null where all went well.
    template <typename... Values>
    void call(Position position, Values... values) const {
        void* status = reinterpret_cast<void* (*)(Values...)>(table_[position])(values...);
        if (status)
            throw std::runtime_error(reinterpret_cast<const char* (*)(void*)>(table_[kGetErrorMessage])(status));
    }

  private:
    void* const* table_;
};

}  // namespace ort
