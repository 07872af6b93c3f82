"""Sparse Structure Selection on CIFAR: factors of residual blocks are driven to zero, and what has zero is cut.

Run:     espalier classify train cifar_structure_selection --set data.root=FOLDER
         No fine-tuning is needed. At least half of the blocks: --set method.prune_ratio=0.5, and then cifar_finetune
Needs:   CIFAR-10 or CIFAR-100 as images, train/<class>/* and val/<class>/*; better a GPU
Result:  not measured by us; how many blocks go depends on the penalty
Cost:    1.5 times that of cifar_dense

Source: Huang & Wang, Data-Driven Sparse Structure Selection for Deep Neural Networks, ECCV 2018, and its code: 240
epochs, decay after 120 and 160, penalty 0.01. Not as there: its networks are pre-activation ResNets.
"""

start = dict(type="dense", name="resnet56_cifar")
data = dict(type="folder", root="data/cifar10")
image_size = 32
augmentation = dict(padding=4)
method = dict(type="structure_selection", penalty=0.01)
schedule = dict(
    epochs=240,
    batch_size=64,
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(1 / 2, 2 / 3),
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=2,
)
