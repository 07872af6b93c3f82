"""Soft Filter Pruning on CIFAR: after every epoch the smallest 40 % of all filters are zeroed, and cut in the end.

Run:     espalier classify train cifar_soft_filters --set data.root=FOLDER
         The paper's others: --set start.name=resnet20_cifar or resnet110_cifar; --set method.prune_ratio=0.1, 0.2, 0.3
         From a trained network: --set start.weights=FILE --set schedule.lr=0.01
Needs:   CIFAR-10 or CIFAR-100 as images, train/<class>/* and val/<class>/*; better a GPU
Result:  not measured by us yet; theirs are in the tables of their section 4
Cost:    200 epochs, 1.25 of cifar_dense

Source: He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018, section 4. Not
as there: the rate falls to a tenth, not a fifth, after 60, 120 and 160 epochs; filters of a residual sum go together.
"""

start = dict(type="dense", name="resnet56_cifar")
data = dict(type="folder", root="data/cifar10")
image_size = 32
augmentation = dict(padding=4)
method = dict(type="soft_filters", prune_ratio=0.4)
schedule = dict(
    epochs=200,
    batch_size=128,
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    milestones=(0.3, 0.6, 0.8),
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=2,
)
