"""The three orderings on PASCAL VOC 2007 with ResNet-50: half of every group of channels, half of the MACs.

Run:     as voc_resnet34, with weights of resnet50
Needs:   as voc_resnet34
Time:    not measured by us. A seed is 7 trainings of a detector and 2 fine-tunings, each 14 epochs of 5,011 images; the
         classifiers are those of coco_resnet50
Result:  not measured by us

Source: as voc_resnet34; the paper has no such network.
"""

_base_ = "voc_resnet34.py"

name = "voc_resnet50"
backbone = dict(name="resnet50")
pruning = dict(prune_ratios=(0.5,))
methods = dict(_delete_=True, half=dict(), macs=dict(kept_macs=(0.5,)))
