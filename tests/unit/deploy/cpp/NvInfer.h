// What docs/cpp/detect_tensorrt.cpp uses of TensorRT's API, declared with the same names and arguments, for machines
// without TensorRT's own headers: enough to compile the example, not to run it.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

namespace nvinfer1 {

enum class DataType : std::int32_t { kFLOAT = 0, kUINT8 = 5 };

struct Dims {
    std::int32_t nbDims;
    std::int64_t d[8];
};

class ILogger {
public:
    enum class Severity : std::int32_t { kWARNING = 2 };
    virtual void log(Severity severity, const char* message) noexcept = 0;
    virtual ~ILogger() = default;
};

class IExecutionContext {
public:
    virtual ~IExecutionContext() noexcept = default;
    bool setTensorAddress(const char* name, void* data) noexcept;
    bool enqueueV3(cudaStream_t stream) noexcept;
};

class ICudaEngine {
public:
    virtual ~ICudaEngine() noexcept = default;
    Dims getTensorShape(const char* name) const noexcept;
    DataType getTensorDataType(const char* name) const noexcept;
    IExecutionContext* createExecutionContext() noexcept;
};

class IRuntime {
public:
    virtual ~IRuntime() noexcept = default;
    ICudaEngine* deserializeCudaEngine(const void* plan, std::size_t size) noexcept;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1
