"""Network Slimming on CIFAR: train with a penalty on the scales of BatchNorm, then cut 70 % of all channels of VGG-19.

Run:     espalier classify train cifar_slimming --set data.root=FOLDER
         then cifar_finetune, with --set start.file=runs/classify/cifar_slimming.safetensors; or cifar_scratch, alike
         CIFAR-100: --set method.prune_ratio=0.5
         Others: --set start.name=preresnet164_cifar --set method.penalty=1e-5 --set method.prune_ratio=0.4, or 0.6;
         densenet40_cifar alike. ResNets that add before they normalise are not in the paper: resnet56_cifar
Needs:   CIFAR-10 or CIFAR-100 as images, train/<class>/* and val/<class>/*; better a GPU
Result:  not measured by us yet. Expected top-1 in per cent, fine-tuned, Scratch-E and Scratch-B, in table 4 of Liu et
         al., ICLR 2019, means of five. CIFAR-10: VGG-19 70 % 93.60 93.30 93.81; PreResNet-164 40 % 94.77 94.70 94.90,
         60 % 94.23 94.58 94.71; DenseNet-40 40 % 94.00 93.68 94.06, 60 % 93.87 93.58 93.85. CIFAR-100: VGG-19 50 %
         72.32 71.94 73.08; PreResNet-164 40 % 76.22 76.36 76.68, 60 % 74.17 75.05 75.73; DenseNet-40 40 % 73.35 73.24
         73.19, 60 % 72.46 72.62 72.91
Cost:    that of cifar_dense for the same network

Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, section 4, and Liu et
al., Rethinking the Value of Network Pruning, ICLR 2019, cifar/network-slimming: 160 epochs, penalty 1e-4 for VGG, 1e-5
for the others. What a norm reads of a sum or concatenation it selects for itself there; see docs/pruning.md.
"""

start = dict(type="dense", name="vgg19_cifar")
data = dict(type="folder", root="data/cifar10")
image_size = 32
augmentation = dict(padding=4)
method = dict(type="slimming", prune_ratio=0.7, penalty=1e-4)
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
