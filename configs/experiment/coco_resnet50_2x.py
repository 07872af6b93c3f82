"""The experiment coco_resnet50 with mmdet's 2x schedule: ResNet-50, half of every group or of the MACs.

Run:     as coco_resnet50
Needs:   as coco_resnet50
Time:    not measured by us; detectors train for 24 epochs in place of 12, fine-tuning stays at 12
Result:  not measured by us
"""

_base_ = "coco_resnet50.py"

name = "coco_resnet50_2x"
detection = dict(train=dict(epochs=24, milestones=(16 / 24, 22 / 24)))
