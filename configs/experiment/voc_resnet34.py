"""The paper's detection experiment: ResNet-34 and its slim networks A and B on PASCAL VOC 2007.

Run:     espalier run voc_resnet34 --set backbone.weights=FILE --set classification.data.root=IMAGENET
             --set detection.data.root=VOCdevkit
         Without ImageNet's images, and five seeds: as coco_resnet34
Needs:   VOCdevkit/VOC2007 with trainval and test; the rest as coco_resnet34
Time:    not measured by us. A seed is 7 trainings of a detector and 2 fine-tunings, each 14 epochs of 5,011 images. At
         10 images a second, one in a batch, they are most of a GPU day; the classifiers are those of coco_resnet34
Result:  not measured by us. Expected, from the paper: scratch_transfer highest, then prune_transfer, then
         transfer_prune, within about 2 points of mAP. Theirs is another detector, and seeds and batch sizes alone move
         mAP by 0.3 to 0.9 points

Trained as jwyang/faster-rcnn.pytorch trains on VOC, which the paper used: one image in a batch, rate 1e-3 and a tenth
of it after 10 of 14 epochs (theirs count each image and its mirror image: 5 of 7), difficult objects among all others.
The longest side is 800, the shorter 600 in most photographs, as theirs. Different: FPN in place of C4, no frozen
stages, 1000 proposals. How long the paper fine-tuned a pruned detector is not known: here as long, at a tenth.
Source: as coco_resnet34. See docs/paper-settings.md.
"""

_base_ = "coco_resnet34.py"

name = "voc_resnet34"
detection = dict(
    data=dict(_delete_=True, type="voc", root="data/VOCdevkit"),
    model=dict(image_size_hw=(800, 800), roi_samples=128),
    train=dict(epochs=14, batch_size=1, lr=1e-3, milestones=(10 / 14,), warmup_iters=0, num_workers=4),
    finetune=dict(epochs=14, batch_size=1, lr=1e-4, milestones=(10 / 14,), warmup_iters=0, num_workers=4),
)
