"""Network Slimming on CIFAR: train with a penalty on the scales of BatchNorm, then cut 40 % of all channels.

Run:     espalier classify train cifar_slimming --set data.root=FOLDER
         then cifar_finetune, with --set start.file=runs/classify/cifar_slimming.safetensors
         VGG-16: --set start.name=vgg16_cifar --set method.penalty=1e-4 --set method.prune_ratio=0.7
Needs:   CIFAR-10 or CIFAR-100 as images, train/<class>/* and val/<class>/*; better a GPU
Result:  not measured by us, and not by Liu et al. on these networks: they have VGG-19, ResNet-164 and DenseNet-40
Cost:    that of cifar_dense

Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, section 4, and its
code: 160 epochs, penalty 1e-5 for ResNets, 1e-4 for VGG. Channels of a residual sum go together, by their mean scale.
"""

start = dict(type="dense", name="resnet56_cifar")
data = dict(type="folder", root="data/cifar10")
image_size = 32
augmentation = dict(padding=4)
method = dict(type="slimming", prune_ratio=0.4, penalty=1e-5)
schedule = dict(
    epochs=160,
    batch_size=64,
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(1 / 2, 3 / 4),
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=2,
)
