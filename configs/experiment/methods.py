"""Pruning methods side by side: each fine-tuned and trained from scratch, small, on generated images.

Run:     espalier run methods
         Photographs: --set "classification.data={'_delete_': True, 'type': 'folder', 'root': 'FOLDER'}"
Needs:   no download, no GPU; FOLDER has train/<class>/* and val/<class>/*
Result:  docs/experiments.md; 17 minutes on one core of a CPU

Another method is another line of `methods`: what it has other than `pruning`.
"""

name = "methods"

backbone = dict(name="resnet18", base_channels=16)

classification = dict(
    data=dict(type="shapes", num_train=600, num_val=300),
    image_size=48,
    train=dict(epochs=6, batch_size=32, lr=4e-3),
    finetune=dict(epochs=3, batch_size=32, lr=2e-3),
    learning=dict(epochs=3, batch_size=32, lr=2e-3),
)

pruning = dict(prune_ratios=(0.5,), round_to=1, calibration=dict(num_batches=10, batch_size=32))

methods = dict(
    random=dict(criterion="random"),
    l1=dict(criterion="l1"),
    taylor=dict(criterion="taylor"),
    thinet=dict(method="thinet"),
    lasso=dict(method="lasso"),
    slimming=dict(method="slimming", penalty=1e-3),
    soft_filters=dict(method="soft_filters"),
    structures=dict(method="structure_selection", penalty=0.1, prune_ratios=(0.25,)),
)

seeds = (0, 1, 2)

latency = dict(warmup=5, rounds=50, num_threads=1)
