"""Network Slimming on ImageNet: VGG-11 with a penalty on the scales of BatchNorm, then without half of its channels.

Run:     espalier classify train imagenet_slimming --set data.root=FOLDER
         then imagenet_finetune, with --set start.file=runs/classify/imagenet_slimming.safetensors and
         --set schedule.epochs=5; or imagenet_scratch, with --set start.scratch_b_cap=None, alike
Needs:   ImageNet as train/<class>/* and val/<class>/*, a GPU
Result:  not measured by us yet. Expected top-1 in table 4 of Liu et al., ICLR 2019: 68.62 fine-tuned, 70.00 Scratch-E,
         71.18 % Scratch-B, of 70.84 dense
Cost:    2.1 times imagenet_dense for ResNet-34. Hours are not measured

Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, and Liu et al.,
Rethinking the Value of Network Pruning, ICLR 2019, imagenet/network-slimming: penalty 1e-5, 90 epochs. Not as there:
the hidden linear layers of torchvision's VGG-11 have no BatchNorm, so that they stay whole.
"""

start = dict(type="dense", name="vgg11_bn")
data = dict(type="folder", root="data/imagenet")
image_size = 224
crop_share = 0.875  # scaled to 256
augmentation = dict(crop_scale=(0.08, 1.0))
method = dict(type="slimming", prune_ratio=0.5, penalty=1e-5, skip=("classifier.*",))
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
