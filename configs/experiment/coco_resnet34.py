"""The paper's orderings on COCO 2017: ResNet-34 and its slim networks A and B, Faster R-CNN with FPN, 1x schedule.

Run:     espalier run coco_resnet34 --set backbone.weights=FILE --set classification.data.root=IMAGENET
             --set detection.data.root=COCO
         Without ImageNet's images: --set "classification.data={'_delete_': True, 'type': 'crops'}"
             --set classification.finetune=None; then networks are transferred as they were cut, their rows say
             `untrained`, and none is trained from scratch
         Five seeds: --set "seeds=(0,1,2,3,4)"
Needs:   IMAGENET/train/<class>/*, IMAGENET/val/<class>/*; COCO/annotations, train2017 and val2017; FILE, from
         espalier import resnet34 CHECKPOINT. Without FILE the dense network is trained for 90 epochs. One GPU of 24 GB
         or more for each training; stages are shared by --jobs, or on a cluster as in docs/slurm.md
Time:    not measured by us. A seed is 7 trainings of a detector and 2 fine-tunings, each 12 epochs of 117,000 images,
         and for each slim network 20 + 90 + 106 or 118 epochs of ImageNet. At 25 images a second the detectors of a
         seed are 6 GPU days, at 1000 a second the classifiers 7 more; time an epoch before you plan with these rates
Result:  not measured by us. The paper has no figure on COCO: its detection experiment is on VOC 2007, see voc_resnet34

Source: Liu et al., Rethinking the Value of Network Pruning, ICLR 2019 (detection: table 7 of its first version); Li et
al., Pruning Filters for Efficient ConvNets, ICLR 2017 (A and B); mmdet's 1x schedule. See docs/paper-settings.md.
"""

name = "coco_resnet34"

backbone = dict(name="resnet34")

classification = dict(
    data=dict(type="folder", root="data/imagenet"),
    image_size=224,
    crop_share=0.875,
    augmentation=dict(crop_scale=(0.08, 1.0)),
    train=dict(
        epochs=90,
        batch_size=256,
        optimizer="SGD",
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        milestones=(1 / 3, 2 / 3),
        warmup_iters=0,
        max_grad_norm=None,
        num_workers=8,
    ),
    finetune=dict(
        epochs=20,
        batch_size=256,
        optimizer="SGD",
        lr=1e-3,
        momentum=0.9,
        weight_decay=1e-4,
        milestones=(1.0,),  # constant
        warmup_iters=0,
        max_grad_norm=None,
        num_workers=8,
    ),
)

detection = dict(
    data=dict(type="coco", root="data/coco"),
    model=dict(norm_eval=True),
    train=dict(
        epochs=12,
        batch_size=16,
        optimizer="SGD",
        lr=0.02,
        momentum=0.9,
        weight_decay=1e-4,
        milestones=(8 / 12, 11 / 12),
        warmup_iters=500,
        max_grad_norm=None,
        num_workers=8,
    ),
    finetune=dict(
        epochs=12,
        batch_size=16,
        optimizer="SGD",
        lr=0.002,
        momentum=0.9,
        weight_decay=1e-4,
        milestones=(8 / 12, 11 / 12),
        warmup_iters=500,
        max_grad_norm=None,
        num_workers=8,
    ),
)

methods = {"resnet34-A": dict(preset="resnet34-A"), "resnet34-B": dict(preset="resnet34-B")}

seeds = (0, 1, 2)
