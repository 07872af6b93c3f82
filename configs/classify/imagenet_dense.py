"""A dense network on ImageNet: ResNet-18, -34 or -50, VGG-16 or VGG-16-BN, with the schedule of Liu et al. (ICLR 2019).

Run:     espalier classify train imagenet_dense --set data.root=FOLDER
         Others than ResNet-34: --set start.name=resnet18, resnet50 or vgg16_bn,
         or --set start.name=vgg16 --set schedule.lr=0.01, as it has no BatchNorm
Needs:   ImageNet as train/<class>/* and val/<class>/*, a GPU
Result:  not measured by us. Expected top-1: that of torchvision's weights, of a like schedule: ResNet-18 69.76,
         ResNet-34 73.31, ResNet-50 76.13, VGG-16 71.59, VGG-16-BN 73.36 %
Cost:    90 epochs x 1.28 million images x 3 (forward and backward) x MACs: 1.3e18 multiply-adds for ResNet-34;
         0.5, 1.1 and 4.2 times that for ResNet-18, ResNet-50 and the VGGs. Hours are not measured

Images are cropped as in the paper: 8 to 100 % of each for training, 224 pixels of 256 for validation.
"""

start = dict(type="dense", name="resnet34")
data = dict(type="folder", root="data/imagenet")
image_size = 224
crop_share = 0.875  # scaled to 256
augmentation = dict(crop_scale=(0.08, 1.0))
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
