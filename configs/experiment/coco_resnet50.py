"""The three orderings on COCO 2017 with ResNet-50: half of every group of channels, half of the MACs, 1x schedule.

Run:     as coco_resnet34, with weights of resnet50
Needs:   as coco_resnet34
Time:    not measured by us. A seed is 7 trainings of a detector and 2 fine-tunings, each 12 epochs of 117,000 images,
         and for each slim network 20 + 90 + 180 epochs of ImageNet. At 20 images a second the detectors of a seed
         are 7 GPU days
Result:  not measured by us

Half of the channels are about a quarter of the MACs, so that scratch_b reaches its cap, twice the dense epochs; of the
network with half of the MACs it is twice the dense epochs, too. The limit is on the classifier's MACs at 224 pixels.
Source: as coco_resnet34; the paper has no L1-norm network of ResNet-50. See docs/paper-settings.md.
"""

_base_ = "coco_resnet34.py"

name = "coco_resnet50"
backbone = dict(name="resnet50")
pruning = dict(prune_ratios=(0.5,))
methods = dict(_delete_=True, half=dict(), macs=dict(kept_macs=(0.5,)))
