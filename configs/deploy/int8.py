"""Convolutions in int8 in the form that TensorRT builds, their ranges found on 64 training pictures of COCO.

Run:     espalier deploy export MODEL --config configs/deploy/int8.py
Expects: MODEL is a detector
Needs:   COCO 2017, or other pictures like those to come: --set pictures.annotations=FILE
         --set pictures.images=FOLDER. The mAP is measured on others, by espalier deploy eval.
"""

precision = "int8"
pictures = dict(
    annotations="data/coco/annotations/instances_train2017.json", images="data/coco/train2017", num_images=64
)
