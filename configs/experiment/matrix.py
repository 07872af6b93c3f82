"""All dimensions of an experiment at once, tiny: two backbones, ratios, budgets, seeds and targets, three orderings.

Run:     espalier run matrix --jobs 2
Needs:   no download, no GPU
Result:  not kept: networks of this size learn nothing. It shows that a matrix runs whole on a machine, in minutes
"""

_base_ = "quickstart.py"

name = "matrix"

backbone = dict(name="resnet18", base_channels=16)
backbones = dict(resnet18=dict(), resnet34=dict(name="resnet34"))

classification = dict(
    data=dict(num_train=32, num_val=12),
    image_size=32,
    train=dict(epochs=1, batch_size=16),
    finetune=dict(epochs=1, batch_size=16),
)

detection = dict(
    data=dict(num_train=8, num_val=4),
    model=dict(image_size_hw=(64, 64), fpn_channels=16, head_channels=16, num_proposals=20, roi_samples=16),
    train=dict(epochs=1, batch_size=4),
    finetune=dict(epochs=1, batch_size=4),
)

pruning = dict(prune_ratios=(0.25, 0.5))
seeds = (0, 1)
targets = dict(onnxruntime=dict(), openvino=dict(runtime="openvino"))
latency = dict(warmup=2, rounds=10)
num_threads = 1
