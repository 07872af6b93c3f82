"""The three orderings on PASCAL VOC 2007 with VGG-16, half of the channels of every convolution removed.

Run:     as voc_resnet34, with weights of vgg16
Needs:   as voc_resnet34
Time:    not measured by us. A seed is 4 trainings of a detector and 1 fine-tuning, each 14 epochs of 5,011 images; the
         classifiers are those of coco_vgg16
Result:  not measured by us. jwyang/faster-rcnn.pytorch publishes 70.1 mAP for dense VGG-16 without FPN

Gradients are clipped, as there. Source: as voc_resnet34; the paper has no such network.
"""

_base_ = "voc_resnet34.py"

name = "voc_vgg16"
backbone = dict(name="vgg16")
classification = dict(train=dict(lr=0.01))
detection = dict(train=dict(max_grad_norm=10.0), finetune=dict(max_grad_norm=10.0))
pruning = dict(prune_ratios=(0.5,), skip=("classifier.*",))
methods = dict(_delete_=True, l1=dict(criterion="l1"))
