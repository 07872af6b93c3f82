// Prints the boxes that a deployed detector finds in a picture, with ONNX Runtime on the CPU.
//
// Build, where ORT is the unpacked archive from ONNX Runtime's releases:
//   g++ -std=c++17 -O2 -I$ORT/include detect_onnxruntime.cpp -L$ORT/lib -lonnxruntime -Wl,-rpath,$ORT/lib -o detect
// Run:
//   ./detect runs/detect/shapes.deploy street.ppm 0.5
#include <onnxruntime_cxx_api.h>

#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "picture.hpp"

void detect(const std::string& folder, const std::string& picture_path, float min_score) {
    const std::vector<std::string> names = class_names(folder);
    const Picture picture = read_ppm(picture_path);
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "detect");
    Ort::Session session(env, (folder + "/model.onnx").c_str(), Ort::SessionOptions());

    // the first input is `image`: batch, 3, height, width
    const Ort::TypeInfo type = session.GetInputTypeInfo(0);
    const auto tensor = type.GetTensorTypeAndShapeInfo();
    const std::vector<std::int64_t> shape = tensor.GetShape();
    const std::size_t batch = std::size_t(shape.at(0));
    const Fitted fitted = fit(picture, int(shape.at(2)), int(shape.at(3)));

    // a tensor uses the memory that it is given, which must live until the run has ended
    std::vector<std::uint8_t> bytes = repeated<std::uint8_t>(fitted.planes, batch);
    std::vector<float> floats(bytes.begin(), bytes.end());
    std::vector<float> image_hw = repeated<float>(fitted.image_hw, batch);
    const std::int64_t hw_shape[] = {shape.at(0), 2};
    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const bool takes_bytes = tensor.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    std::vector<Ort::Value> inputs;
    inputs.push_back(takes_bytes
                         ? Ort::Value::CreateTensor<std::uint8_t>(memory, bytes.data(), bytes.size(), shape.data(), 4)
                         : Ort::Value::CreateTensor<float>(memory, floats.data(), floats.size(), shape.data(), 4));
    inputs.push_back(Ort::Value::CreateTensor<float>(memory, image_hw.data(), image_hw.size(), hw_shape, 2));

    const char* input_names[] = {"image", "image_hw"};
    const char* output_names[] = {"boxes_xyxy", "scores", "labels"};
    std::vector<Ort::Value> outputs =
        session.Run(Ort::RunOptions{nullptr}, input_names, inputs.data(), 2, output_names, 3);
    const std::size_t count = std::size_t(outputs[1].GetTensorTypeAndShapeInfo().GetShape().at(1));
    // only the first picture of the batch is printed: the others are the same
    print_boxes(outputs[0].GetTensorData<float>(), outputs[1].GetTensorData<float>(),
                outputs[2].GetTensorData<std::int64_t>(), count, fitted, names, min_score);
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
