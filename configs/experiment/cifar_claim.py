"""Is training from scratch as good as fine-tuning? The central claim of Liu et al. (ICLR 2019), on 10,000 images.

Run:     espalier run cifar_claim --set classification.data.train=FILE --set classification.data.val=FILE
Needs:   two .npz files of CIFAR-10 images: `images` (N, 32, 32, 3) and `labels` (N,); better a GPU
Result:  docs/experiments.md; about 100 minutes on one core of a CPU

Source: Liu et al., Rethinking the Value of Network Pruning, sections 4 and 5. Theirs are 160 epochs on 50,000 images
and 40 of fine-tuning; here the images are a fifth of that and the epochs a sixteenth. The channels
between the two convolutions of each block are cut, as in the paper, and half and 0.7 of them are 1.98 and 3.53 times
fewer MACs; Scratch-B has at most twice the epochs.
"""

name = "cifar_claim"

backbone = dict(name="resnet20_cifar")

classification = dict(
    data=dict(type="npz", train="data/cifar10_train.npz", val="data/cifar10_test.npz"),
    image_size=32,
    augmentation=dict(padding=4),
    train=dict(
        epochs=10,
        batch_size=128,
        optimizer="SGD",
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        milestones=(1 / 2, 3 / 4),
        warmup_iters=0,
        max_grad_norm=None,
        amp="bf16",
    ),
    finetune=dict(
        epochs=3,
        batch_size=128,
        optimizer="SGD",
        lr=1e-2,
        momentum=0.9,
        weight_decay=1e-4,
        milestones=(1.0,),
        warmup_iters=0,
        max_grad_norm=None,
        amp="bf16",
    ),
)

pruning = dict(prune_ratios=(0.5, 0.7), round_to=1, calibration=dict(num_batches=20, batch_size=50))
methods = dict(l1=dict(), lasso=dict(method="lasso"))
seeds = (0, 1, 2)
