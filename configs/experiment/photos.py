"""The three orderings on real photographs: any folder in COCO format.

Run:     espalier run photos --set detection.data.root=FOLDER
Needs:   FOLDER/instances_train.json, FOLDER/instances_val.json, and their photographs in FOLDER/images.
         Other names, relative to FOLDER: --set detection.data.train_annotations=... and so on; no GPU
Result:  benchmarks/photos-seeds-cpu.json, shown in docs/photos.md: on 292 photographs, with five seeds, the slim
         detectors are 1.4 times as fast on a CPU, with 1.8 times fewer MACs

The backbone learns from the annotated objects, cut out of the training photographs, so no other data is needed.
To start from a backbone trained elsewhere: --set backbone.weights=FILE. The settings suit landscape photographs of
4:3 and a CPU.
"""

name = "photos"

backbone = dict(name="resnet18", base_channels=24)

classification = dict(
    data=dict(type="crops"),
    image_size=64,
    train=dict(epochs=4, batch_size=32, lr=3e-3),
    finetune=dict(epochs=2, batch_size=32, lr=1.5e-3),
)

detection = dict(
    data=dict(
        type="coco",
        root="data/photos",
        train_annotations="instances_train.json",
        train_images="images",
        val_annotations="instances_val.json",
        val_images="images",
    ),
    model=dict(
        image_size_hw=(192, 256),
        fpn_channels=32,
        head_channels=128,
        num_proposals=200,
        roi_samples=64,
        anchor_scale=4,
    ),
    train=dict(epochs=6, batch_size=4, lr=1.5e-3),
    finetune=dict(epochs=3, batch_size=4, lr=1e-3),
)

terms = "equal_iterations"  # every detector is trained for as many epochs as transfer_prune: 6 + 3

pruning = dict(prune_ratios=(0.5,), criterion="l1", round_to=8)

latency = dict(warmup=5, rounds=100, num_threads=1)

num_threads = 2
