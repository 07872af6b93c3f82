"""Convolutions in int8 and NonMaxSuppression as an operator, as ONNX Runtime runs them fastest on a CPU.

Run:     espalier deploy export MODEL --config int8_onnxruntime
Expects: MODEL is a detector. TensorRT does not build this file; the config int8 is for TensorRT.
         For OpenVINO: --set runtime=openvino
Needs:   COCO 2017, or pictures like those the detector will see: --set pictures.annotations=FILE
         --set pictures.images=FOLDER
Result:  benchmarks/precisions-bccd-cpu.json: 1.33 times as fast as fp32 on a CPU, 0.04 points of mAP above PyTorch,
         on blood cells
"""

precision = "int8"
runtime = "onnxruntime"
pictures = dict(
    annotations="data/coco/annotations/instances_train2017.json", images="data/coco/train2017", num_images=64
)
