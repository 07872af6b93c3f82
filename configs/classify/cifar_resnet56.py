"""ResNet-56 on CIFAR-10 with the schedule of He et al., Deep Residual Learning, section 4.2.

Run:     espalier classify train cifar_resnet56 --set data.root=FOLDER
         Trained weights: espalier classify eval cifar_resnet56 --weights FILE --data FILE_OR_FOLDER
Needs:   cifar-10-python.tar.gz, or what was unpacked from it, in that folder; a GPU
Result:  not measured
"""

start = dict(type="dense", name="resnet56_cifar")
data = dict(type="cifar", root="data/cifar10")
image_size = 32
schedule = dict(
    epochs=164,
    batch_size=128,
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(1 / 2, 3 / 4),
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=2,
)
