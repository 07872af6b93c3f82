"""The whole path, small: generated data, a narrow ResNet-18, five detectors.

Run:     espalier run quickstart
Needs:   no download, no GPU
Result:  not measured

One seed, so that it ends within minutes on two cores; it shows the path, and separates nothing. Three, in three times
as long: --set "seeds=(0,1,2)"
"""

name = "quickstart"

backbone = dict(name="resnet18", base_channels=24)

classification = dict(
    data=dict(type="shapes", num_train=1200, num_val=300),
    image_size=64,
    train=dict(epochs=5, batch_size=32, lr=4e-3),
    finetune=dict(epochs=3, batch_size=32, lr=2e-3),
)

detection = dict(
    data=dict(type="scenes", num_train=300, num_val=60),
    model=dict(
        image_size_hw=(160, 160),
        fpn_channels=32,
        head_channels=128,
        num_proposals=100,
        roi_samples=32,
        anchor_scale=4,
    ),
    train=dict(epochs=4, batch_size=8, lr=2e-3),
    finetune=dict(epochs=2, batch_size=8, lr=1e-3),
)

pruning = dict(prune_ratios=(0.5,), criterion="l1", round_to=8)

terms = "equal_iterations"  # every detector is trained for as many epochs as transfer_prune: 4 + 2

latency = dict(warmup=5, rounds=50, num_threads=1)

num_threads = 2
