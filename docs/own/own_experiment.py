"""The three orderings on a network of timm, with a criterion of one's own: generated data, small.

Run:     cd docs/own && espalier run own_experiment.py
Needs:   pip install timm; no download, no GPU
Result:  not measured by us yet
"""

name = "own"

backbone = dict(name="own:resnet10t")

classification = dict(
    data=dict(type="shapes", num_train=600, num_val=120),
    image_size=64,
    train=dict(epochs=3, batch_size=32, lr=2e-3),
    finetune=dict(epochs=2, batch_size=32, lr=1e-3),
)

detection = dict(
    data=dict(type="scenes", num_train=120, num_val=30),
    model=dict(
        image_size_hw=(128, 128),
        fpn_channels=32,
        head_channels=64,
        num_proposals=50,
        roi_samples=32,
        anchor_scale=4,
    ),
    train=dict(epochs=3, batch_size=8, lr=2e-3),
    finetune=dict(epochs=2, batch_size=8, lr=1e-3),
)

pruning = dict(prune_ratios=(0.5,), criterion="own:LargestWeight", round_to=8)

latency = dict(warmup=5, rounds=20, num_threads=1)

num_threads = 1
