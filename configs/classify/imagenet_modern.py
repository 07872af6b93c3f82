"""A dense ResNet-50 on ImageNet by torchvision's newer recipe, as far as its parts are here.

Run:     espalier classify train imagenet_modern --set data.root=FOLDER
         Others: --set start.name=resnet34 or resnet18. A slim network from random weights:
         --set start='{"_delete_": True, "type": "scratch", "file": "FILE", "budget": "scratch_e"}'
Needs:   ImageNet as train/<class>/* and val/<class>/*, GPUs
Result:  not measured by us. Expected top-1 between 76.13 %, that of imagenet_dense, and the 80.86 % of torchvision's
         IMAGENET1K_V2 weights, which had more: see below
Cost:    600 epochs x 1.28 million images x 3 (forward and backward) x MACs: 9.4e18 multiply-adds for ResNet-50.
         Hours are not measured

Source: Vryniotis, How to Train State-Of-The-Art Models Using TorchVision's Latest Primitives, pytorch.org, 2021. It
also has CutMix, repeated augmentation, no weight decay of normalisation layers, and training at 176 pixels.
"""

start = dict(type="dense", name="resnet50")
data = dict(type="folder", root="data/imagenet")
image_size = 224
crop_share = 0.966  # scaled to 232
augmentation = dict(crop_scale=(0.08, 1.0), policy="trivial_augment", erasing=0.1)
objective = dict(label_smoothing=0.1, mixup=0.2)
schedule = dict(
    epochs=600,
    batch_size=1024,
    optimizer="SGD",
    lr=0.5,
    momentum=0.9,
    weight_decay=2e-5,
    warmup_iters=6255,  # five epochs
    max_grad_norm=None,
    ema=0.99997,  # theirs is 0.99998 every 32 iterations, scaled by 1024 x 32 / 600
    num_workers=8,
)
