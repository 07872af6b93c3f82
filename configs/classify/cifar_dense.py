"""A dense network on CIFAR, ResNet-56 or one of seven others, with the schedule of Liu et al. (ICLR 2019).

Run:     espalier classify train cifar_dense --set data.root=FOLDER
         Others than ResNet-56: --set start.name=resnet20_cifar, resnet110_cifar, vgg16_cifar, vgg19_cifar,
         preresnet110_cifar, preresnet164_cifar, densenet40_cifar or densenet_bc100_cifar
Needs:   CIFAR-10 or CIFAR-100 as images, train/<class>/* and val/<class>/*; better a GPU
Result:  not measured by us. Expected top-1 on CIFAR-10: ResNet-56 93.14, ResNet-110 93.14, VGG-16 93.63 % (table 1 of
         Liu et al., means of five), VGG-19 93.53, PreResNet-164 95.04, DenseNet-40 94.10 % (table 4), ResNet-20
         91.25 % (He et al., CVPR 2016, table 6). On CIFAR-100: VGG-19 72.63, PreResNet-164 76.80, DenseNet-40 73.82 %
Cost:    160 epochs x 50 000 images x 3 (forward and backward) x MACs: 3.0e15 multiply-adds for ResNet-56;
         0.3, 2.0 and 2.5 times that for ResNet-20, ResNet-110 and VGG-16; 3.2, 1.3, 2.0 and 2.3 times for VGG-19,
         PreResNet-110, PreResNet-164 and DenseNet-40. Hours are not measured

Images are cropped as in the paper, but normalised with ImageNet's mean: see docs/training.md.
"""

start = dict(type="dense", name="resnet56_cifar")
data = dict(type="folder", root="data/cifar10")
image_size = 32
augmentation = dict(padding=4)
schedule = dict(
    epochs=160,
    batch_size=64,
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(0.5, 0.75),
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=2,
)
