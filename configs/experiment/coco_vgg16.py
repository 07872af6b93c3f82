"""The three orderings on COCO 2017 with VGG-16, half of the channels of every convolution removed, 1x schedule.

Run:     as coco_resnet34, with weights of vgg16
Needs:   as coco_resnet34
Time:    not measured by us. A seed is 4 trainings of a detector and 1 fine-tuning, each 12 epochs of 117,000 images,
         and 20 + 90 + 180 epochs of ImageNet. At 10 images a second the detectors of a seed are 8 GPU days
Result:  not measured by us

VGG-16 has no BatchNorm: rates are 0.01 in place of 0.1 on ImageNet, as in the paper's code, and of 0.02 for the
detector, with gradients clipped, as in jwyang/faster-rcnn.pytorch. The detector's pyramid begins with relu3_3 and ends
with the last pooling. The classifier's hidden linear layers stay whole: the detector has none of them.
Source: as coco_resnet34; the literature has no L1-norm network of VGG-16 for ImageNet. See docs/paper-settings.md.
"""

_base_ = "coco_resnet34.py"

name = "coco_vgg16"
backbone = dict(name="vgg16")
classification = dict(train=dict(lr=0.01))
detection = dict(train=dict(lr=0.01, max_grad_norm=10.0), finetune=dict(lr=0.001, max_grad_norm=10.0))
pruning = dict(prune_ratios=(0.5,), skip=("classifier.*",))
methods = dict(_delete_=True, l1=dict(criterion="l1"))
