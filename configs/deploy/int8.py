"""Convolutions in int8 in the form that TensorRT builds, their ranges found on 64 training pictures of COCO.

Run:     espalier deploy export MODEL --config int8
Expects: MODEL is a detector
Needs:   COCO 2017, or pictures like those the detector will see: --set pictures.annotations=FILE
         --set pictures.images=FOLDER. Do not take the pictures that espalier deploy eval will score
Result:  benchmarks/precisions-bccd-cpu.json: 0.22 points of mAP above PyTorch, on blood cells. Its speed on a GPU is
         not measured
"""

precision = "int8"
pictures = dict(
    annotations="data/coco/annotations/instances_train2017.json", images="data/coco/train2017", num_images=64
)
