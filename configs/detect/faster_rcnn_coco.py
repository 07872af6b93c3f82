"""Faster R-CNN on COCO with mmdet's 1x schedule: 12 epochs, batch 16, a tenth of the rate after 8 and 11.

Run:     espalier detect train faster_rcnn_coco --set data.root=FOLDER --set start.file=FILE
Needs:   COCO 2017 as annotations/, train2017/ and val2017/, a classifier's model file, a GPU
Result:  not measured
"""

start = dict(type="transfer", file="runs/classify/imagenet_dense.safetensors")
data = dict(type="coco", root="data/coco")
model = dict(norm_eval=True)
schedule = dict(
    epochs=12,
    batch_size=16,
    optimizer="SGD",
    lr=0.02,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(8 / 12, 11 / 12),
    warmup_iters=500,
    max_grad_norm=None,
    num_workers=8,
)
