"""Convolutions in int8 and NonMaxSuppression as an operator, as ONNX Runtime runs them fastest on a CPU.

Run:     espalier deploy export MODEL --config configs/deploy/int8_onnxruntime.py
Expects: MODEL is a detector. TensorRT does not build the file: configs/deploy/int8.py is for it.
         For OpenVINO: --set runs_on=openvino
Needs:   COCO 2017, or other pictures like those to come: --set pictures.annotations=FILE
         --set pictures.images=FOLDER
"""

precision = "int8"
runs_on = "onnxruntime"
pictures = dict(
    annotations="data/coco/annotations/instances_train2017.json", images="data/coco/train2017", num_images=64
)
