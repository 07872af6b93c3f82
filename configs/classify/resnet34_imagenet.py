"""ResNet-34 on ImageNet with the schedule of Rethinking the Value of Network Pruning (its ImageNet code).

Run:     espalier classify train resnet34_imagenet --set data.root=FOLDER
Needs:   ImageNet as train/<class>/* and val/<class>/*, a GPU
Result:  not measured
"""

start = dict(type="dense", name="resnet34")
data = dict(type="folder", root="data/imagenet")
image_size = 224
schedule = dict(
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
)
