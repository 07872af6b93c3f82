// What docs/cpp/detect_onnxruntime.cpp uses of ONNX Runtime's C++ API, with the same names and arguments, for machines
// where only Python's package of ONNX Runtime is installed, which has the library but no headers. It calls that library:
// its functions stand in a table to which new ones are only appended, so their places here stay right.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct OrtApiBase {
    void* const* (*GetApi)(std::uint32_t version);
    const char* (*GetVersionString)();
};
extern "C" const OrtApiBase* OrtGetApiBase();

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7
};

namespace Ort {

template <typename Result, typename... Arguments>
Result call(int place, Arguments... arguments) {
    static void* const* const table = OrtGetApiBase()->GetApi(1);
    return reinterpret_cast<Result (*)(Arguments...)>(table[place])(arguments...);
}

template <typename... Arguments>
void checked(int place, Arguments... arguments) {
    if (void* status = call<void*>(place, arguments...)) throw std::runtime_error(call<const char*>(2, status));
}

// Objects are released by the process's end: the example runs once.
struct Handle {
    void* object = nullptr;
};

struct Env : Handle {
    Env(OrtLoggingLevel level, const char* name) { checked(3, int(level), name, &object); }
};

struct SessionOptions : Handle {
    SessionOptions() { checked(10, &object); }
};

struct RunOptions : Handle {
    explicit RunOptions(std::nullptr_t) {}
};

struct MemoryInfo : Handle {
    static MemoryInfo CreateCpu(OrtAllocatorType allocator, OrtMemType kind) {
        MemoryInfo made;
        checked(69, int(allocator), int(kind), &made.object);
        return made;
    }
};

struct TensorTypeAndShapeInfo {
    const void* object;
    std::vector<std::int64_t> GetShape() const {
        std::size_t count = 0;
        checked(61, object, &count);
        std::vector<std::int64_t> shape(count);
        checked(62, object, shape.data(), count);
        return shape;
    }
    ONNXTensorElementDataType GetElementType() const {
        int type = 0;
        checked(60, object, &type);
        return ONNXTensorElementDataType(type);
    }
};

struct TypeInfo : Handle {
    TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const {
        const void* found = nullptr;
        checked(55, static_cast<const void*>(object), &found);
        return {found};
    }
};

template <typename T>
constexpr int element_type =
    sizeof(T) == 8 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64
                   : sizeof(T) == 4 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;

struct Value : Handle {
    template <typename T>
    static Value CreateTensor(const MemoryInfo& memory, T* data, std::size_t count, const std::int64_t* shape,
                              std::size_t rank) {
        Value made;
        checked(49, static_cast<const void*>(memory.object), static_cast<void*>(data), count * sizeof(T), shape, rank,
                element_type<T>, &made.object);
        return made;
    }
    template <typename T>
    const T* GetTensorData() const {
        void* data = nullptr;
        checked(51, object, &data);
        return static_cast<const T*>(data);
    }
    TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const {
        void* found = nullptr;
        checked(65, static_cast<const void*>(object), &found);
        return {found};
    }
};

struct Session : Handle {
    Session(const Env& env, const char* path, const SessionOptions& options) {
        checked(7, static_cast<const void*>(env.object), path, static_cast<const void*>(options.object), &object);
    }
    TypeInfo GetInputTypeInfo(std::size_t index) const {
        TypeInfo found;
        checked(33, static_cast<const void*>(object), index, &found.object);
        return found;
    }
    std::vector<Value> Run(const RunOptions& options, const char* const* input_names, const Value* inputs,
                           std::size_t num_inputs, const char* const* output_names, std::size_t num_outputs) {
        std::vector<const void*> given(num_inputs);
        std::vector<void*> made(num_outputs);
        for (std::size_t i = 0; i < num_inputs; ++i) given[i] = inputs[i].object;
        checked(9, object, static_cast<const void*>(options.object), input_names, static_cast<const void*>(given.data()),
                num_inputs, output_names, num_outputs, static_cast<void*>(made.data()));
        std::vector<Value> outputs(num_outputs);
        for (std::size_t i = 0; i < num_outputs; ++i) outputs[i].object = made[i];
        return outputs;
    }
};

}  // namespace Ort
