"""Does what a pruned network keeps guide another? Guided, transferred, uniform and random widths, each from scratch.

Run:     espalier run guided --set classification.data.train=FILE --set classification.data.val=FILE
Needs:   two .npz files of CIFAR-10 images: `images` (N, 32, 32, 3) and `labels` (N,); better a GPU
Result:  not measured by us yet

Source: Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, section 5. All rows are ResNet-20s with 55 % of
the dense MACs (22.2 to 22.3 million), trained from random weights as long as the dense one. `guided` has the shares
that a trained ResNet-20 keeps when half of all its channels go, `transferred` those of a trained ResNet-56 without
47 %, both by the scales of BatchNorm, as `espalier prune guide` gives them for resnet20_cifar; `uniform` and `random`
are its baselines. Every layer that can be cut has its own width or ratio here: `prune_ratios` only names the rows.
"""

name = "guided"

backbone = dict(name="resnet20_cifar")

schedule = dict(
    epochs=5,
    batch_size=128,
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(1 / 2, 3 / 4),
    warmup_iters=0,
    max_grad_norm=None,
    amp="bf16",
    channels_last=True,
)
classification = dict(
    data=dict(type="npz", train="data/cifar10_train.npz", val="data/cifar10_test.npz"),
    image_size=32,
    augmentation=dict(padding=4),
    train=schedule,
    finetune=schedule,  # of no row here
)
del schedule

pruning = dict(prune_ratios=(0.45,), round_to=1)


def blocks(*widths):
    """Return the widths between the two convolutions of each block."""
    names = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
    return dict(zip(names, widths, strict=True))


methods = dict(
    guided=dict(ratios={"layer1.*.conv1": 0.291667, "layer2.*.conv1": 0.479167, "layer3.*.conv1": 0.5625}),
    transferred=dict(ratios={"layer1.*.conv1": 0.375, "layer2.*.conv1": 0.475694, "layer3.*.conv1": 0.491319}),
    uniform=dict(widths=blocks(9, 9, 8, 18, 17, 17, 36, 36, 35)),
    random_0=dict(widths=blocks(14, 12, 7, 9, 17, 13, 51, 20, 31)),
    random_1=dict(widths=blocks(3, 14, 13, 10, 18, 16, 44, 52, 9)),
)
del blocks
orderings = ("scratch_transfer",)
budgets = ("scratch_e",)
seeds = (0, 1, 2)
