"""Train a slim network on CIFAR from random weights: Scratch-B or Scratch-E of Liu et al. (ICLR 2019).

Run:     espalier prune resnet34_a runs/classify/cifar_dense.safetensors --set preset=resnet56-A
         espalier classify train cifar_scratch --set data.root=FOLDER
         Scratch-E: --set start.budget=scratch_e. Another slim network: --set start.file=FILE.
         Strict: --set start.finetune_epochs=40
Needs:   CIFAR-10 or CIFAR-100 as images, train/<class>/* and val/<class>/*, the slim model file (its widths alone are
         used); better a GPU
Result:  not measured by us. Expected top-1 on CIFAR-10 in their table 1, E and B: ResNet-56-A 92.96 and 93.09, -B 92.54
         and 93.05, ResNet-110-A 93.25 and 93.22, -B 92.89 and 93.60, VGG-16-A 93.62 and 93.78 %
Cost:    Scratch-B that of the dense training: ResNet-56-A 178 epochs, -B 220, ResNet-110-A 190, -B 260, VGG-16-A 243.
         Hours are not measured
"""

start = dict(
    type="scratch",
    file="runs/classify/cifar_dense-resnet56-A.safetensors",
    budget="scratch_b",
    scratch_b_cap=None,  # as in the official CIFAR code
)
data = dict(type="folder", root="data/cifar10")
image_size = 32
augmentation = dict(padding=4)
schedule = dict(
    epochs=160,  # of the dense network
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
