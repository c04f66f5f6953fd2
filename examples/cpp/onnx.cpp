// Run the model.onnx of onnx.export, onnx.optimize or onnx.quantize_* by ONNX Runtime.
#include "arguments.h"
#include "onnxruntime_table.h"

static void run(const Arguments& given) {
    ort::Api api;
    void *env, *options, *session, *allocator, *memory, *input, *output = nullptr, *described;
    api.call(ort::kCreateEnv, ort::kWarning, "example", &env);
    api.call(ort::kCreateSessionOptions, &options);
    api.call(ort::kCreateSession, env, given.model.c_str(), options, &session);
    api.call(ort::kGetAllocator, &allocator);

    char *input_name, *output_name;
    api.call(ort::kGetInputName, session, size_t{0}, allocator, &input_name);
    api.call(ort::kGetOutputName, session, size_t{0}, allocator, &output_name);

    api.call(ort::kCreateCpuMemoryInfo, ort::kArenaAllocator, ort::kDefaultMemory, &memory);
    api.call(ort::kCreateTensorWithData, memory, const_cast<float*>(given.values.data()),
             given.values.size() * sizeof(float), given.shape.data(), given.shape.size(), ort::kFloat, &input);
    api.call(ort::kRun, session, static_cast<void*>(nullptr), &input_name, &input, size_t{1}, &output_name,
             size_t{1}, &output);

    size_t rank;
    float* values;
    api.call(ort::kGetTensorTypeAndShape, output, &described);
    api.call(ort::kGetDimensionsCount, described, &rank);
    std::vector<int64_t> shape(rank);
    api.call(ort::kGetDimensions, described, shape.data(), rank);
    api.call(ort::kGetTensorData, output, &values);
    int64_t columns = 1;
    for (size_t axis = 1; axis < rank; axis++) columns *= shape[axis];
    print(values, shape[0], columns);
}

int main(int argc, char** argv) { return guarded(run, argc, argv); }
