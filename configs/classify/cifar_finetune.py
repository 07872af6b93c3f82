"""Fine-tune a slim network on CIFAR: 40 epochs at the small rate of Liu et al. (ICLR 2019), 1e-3.

Run:     espalier prune resnet34_a runs/classify/cifar_dense.safetensors --set preset=resnet56-A
         espalier classify train cifar_finetune --set data.root=FOLDER
         Another slim network: --set start.file=FILE
Needs:   CIFAR-10 or CIFAR-100 as images, train/<class>/* and val/<class>/*, the slim model file; better a GPU
Result:  not measured by us. Expected top-1 on CIFAR-10 in their table 1: ResNet-56-A 92.97, -B 92.67, ResNet-110-A
         93.14, -B 92.69, VGG-16-A 93.41 %
Cost:    40 epochs, 0.22 of the dense training's for ResNet-56-A. Hours are not measured

The rate decides the comparison with training from scratch: see cifar_finetune_large.
"""

start = dict(type="finetune", file="runs/classify/cifar_dense-resnet56-A.safetensors")
data = dict(type="folder", root="data/cifar10")
image_size = 32
augmentation = dict(padding=4)
schedule = dict(
    epochs=40,
    batch_size=64,
    optimizer="SGD",
    lr=1e-3,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(1.0,),  # constant
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=2,
)
