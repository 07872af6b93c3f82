"""Soft Filter Pruning on ImageNet: after every epoch the smallest 30 % of all filters are zeroed, and cut in the end.

Run:     espalier classify train imagenet_soft_filters --set data.root=FOLDER
         Others than ResNet-34: --set start.name=resnet18, resnet50 or resnet101
         From a trained network: --set start.weights=FILE --set schedule.lr=0.01
Needs:   ImageNet as train/<class>/* and val/<class>/*, a GPU
Result:  not measured by us yet; theirs are in the tables of their section 4
Cost:    1.1 times imagenet_dense for the same network. Hours are not measured

Source: He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018, section 4. Not
as there: filters of a residual sum go together, with those of its projections, which they leave whole.
"""

start = dict(type="dense", name="resnet34")
data = dict(type="folder", root="data/imagenet")
image_size = 224
crop_share = 0.875  # scaled to 256
augmentation = dict(crop_scale=(0.08, 1.0))
method = dict(type="soft_filters", prune_ratio=0.3)
schedule = dict(
    epochs=100,
    batch_size=256,
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(0.3, 0.6, 0.9),
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=8,
)
