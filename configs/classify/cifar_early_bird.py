"""Early-bird ticket on CIFAR: slimming until the choice of half of all channels settles, then the slim network alone.

Run:     espalier classify train cifar_early_bird --set data.root=FOLDER
Needs:   CIFAR-10 or CIFAR-100 as images, train/<class>/* and val/<class>/*; better a GPU
Result:  not measured by us yet. The authors' code names epoch 35 of 160 for 30 % of VGG-16's channels on CIFAR-100, and
         nothing for this network. If no ticket is found, one line says so, and the network is cut at the end
Cost:    that of cifar_dense until the ticket is found, less afterwards

Source: You et al., Drawing Early-Bird Tickets, ICLR 2020, section 4, and its code: masks of five epochs in a row that
differ in a tenth of the channels at most, penalty 1e-4, which stays on after the cut, batches of 256, 160 epochs; the
slim network goes on with the weights and the epoch of the dense one. Theirs count channels one by one, this one cuts
those of a residual sum together.
"""

start = dict(type="dense", name="resnet56_cifar")
data = dict(type="folder", root="data/cifar10")
image_size = 32
augmentation = dict(padding=4)
method = dict(type="early_bird", prune_ratio=0.5, ratios=(0.3, 0.7), penalty=1e-4)
schedule = dict(
    epochs=160,
    batch_size=256,
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(1 / 2, 3 / 4),
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=2,
)
