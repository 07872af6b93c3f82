"""The experiment coco_vgg16 with mmdet's 2x schedule: VGG-16, half of every convolution removed.

Run:     as coco_vgg16
Needs:   as coco_vgg16
Time:    not measured by us; detectors train for 24 epochs in place of 12, fine-tuning stays at 12
Result:  not measured by us
"""

_base_ = "coco_vgg16.py"

name = "coco_vgg16_2x"
detection = dict(train=dict(epochs=24, milestones=(16 / 24, 22 / 24)))
