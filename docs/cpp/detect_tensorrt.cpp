// Prints the boxes that a deployed detector finds in a picture, with an engine of TensorRT 10 or later, or TensorRT-RTX.
//
// The engine comes from `espalier deploy build FOLDER/model.onnx --backend tensorrt`, on this GPU and by this version.
// Build, where TRT is TensorRT's folder (for TensorRT-RTX link -ltensorrt_rtx instead of -lnvinfer):
//   CUDA=/usr/local/cuda
//   g++ -std=c++17 -O2 -I$TRT/include -I$CUDA/include detect_tensorrt.cpp -L$TRT/lib -L$CUDA/lib64 -lnvinfer -lcudart -o detect
// Run:
//   ./detect runs/detect/shapes.deploy street.ppm 0.5
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "picture.hpp"

struct Log : nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << message << '\n';
    }
};

void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

template <typename T>
T* found(T* pointer, const std::string& what) {
    if (!pointer) throw std::runtime_error(what);
    return pointer;
}

// Memory on the GPU for one tensor of the engine.
template <typename T>
class Buffer {
public:
    explicit Buffer(std::size_t count) : count_(count) { check(cudaMalloc(&data_, count * sizeof(T))); }
    ~Buffer() { cudaFree(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* data() const { return data_; }
    void put(const std::vector<T>& values) {
        check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    }
    std::vector<T> values() const {
        std::vector<T> values(count_);
        check(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
        return values;
    }

private:
    std::size_t count_;
    void* data_ = nullptr;
};

void detect(const std::string& folder, const std::string& picture_path, float min_score) {
    const std::vector<std::string> names = class_names(folder);
    const Picture picture = read_ppm(picture_path);
    std::ifstream file(folder + "/model.engine", std::ios::binary);
    const std::vector<char> plan{std::istreambuf_iterator<char>(file), {}};

    Log log;  // must live as long as what it is given to
    const std::unique_ptr<nvinfer1::IRuntime> runtime(found(nvinfer1::createInferRuntime(log), "TensorRT: no runtime"));
    const std::unique_ptr<nvinfer1::ICudaEngine> engine(
        found(runtime->deserializeCudaEngine(plan.data(), plan.size()), folder + "/model.engine: not for this machine"));
    const std::unique_ptr<nvinfer1::IExecutionContext> context(
        found(engine->createExecutionContext(), "TensorRT: too little memory on the GPU"));

    const nvinfer1::Dims shape = engine->getTensorShape("image");  // batch, 3, height, width
    const std::size_t batch = std::size_t(shape.d[0]), count = std::size_t(engine->getTensorShape("scores").d[1]);
    const Fitted fitted = fit(picture, int(shape.d[2]), int(shape.d[3]));
    const std::vector<std::uint8_t> bytes = repeated<std::uint8_t>(fitted.planes, batch);
    const bool takes_bytes = engine->getTensorDataType("image") == nvinfer1::DataType::kUINT8;

    Buffer<std::uint8_t> byte_image(bytes.size());
    Buffer<float> float_image(bytes.size()), image_hw(2 * batch);
    Buffer<float> boxes_xyxy(4 * count * batch), scores(count * batch);
    Buffer<std::int64_t> labels(count * batch);
    byte_image.put(bytes);
    float_image.put(std::vector<float>(bytes.begin(), bytes.end()));
    image_hw.put(repeated<float>(fitted.image_hw, batch));

    context->setTensorAddress("image", takes_bytes ? byte_image.data() : float_image.data());
    context->setTensorAddress("image_hw", image_hw.data());
    context->setTensorAddress("boxes_xyxy", boxes_xyxy.data());
    context->setTensorAddress("scores", scores.data());
    context->setTensorAddress("labels", labels.data());
    cudaStream_t stream;
    check(cudaStreamCreate(&stream));
    if (!context->enqueueV3(stream)) throw std::runtime_error("TensorRT: cannot run the engine");
    check(cudaStreamSynchronize(stream));
    check(cudaStreamDestroy(stream));
    // only the first picture of the batch is printed: the others are the same
    print_boxes(boxes_xyxy.values().data(), scores.values().data(), labels.values().data(), count, fitted, names,
                min_score);
}

int main(int argc, char** argv) {
    if (argc < 3) {
        std::cerr << "usage: " << argv[0] << " FOLDER PICTURE.ppm [MIN_SCORE]\n";
        return 2;
    }
    try {
        detect(argv[1], argv[2], argc > 3 ? std::stof(argv[3]) : 0.3F);
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
