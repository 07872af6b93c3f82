"""The experiment coco_resnet34 with mmdet's 2x schedule: ResNet-34 and its slim networks A and B.

Run:     as coco_resnet34
Needs:   as coco_resnet34
Time:    not measured by us; detectors train for 24 epochs in place of 12, fine-tuning stays at 12
Result:  not measured by us
"""

_base_ = "coco_resnet34.py"

name = "coco_resnet34_2x"
detection = dict(train=dict(epochs=24, milestones=(16 / 24, 22 / 24)))
