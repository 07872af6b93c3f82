"""Fine-tune a (slim) detector on COCO, or on any folder in COCO format, with a tenth of the 1x schedule's rate.

Run:     espalier detect train faster_rcnn_coco_finetune --set data.root=FOLDER --set start.file=FILE
Needs:   COCO 2017 as annotations/, train2017/ and val2017/, a detector's model file, a GPU
Result:  not measured
"""

start = dict(type="finetune", file="runs/detect/faster_rcnn_coco-l1-0.5.safetensors")
data = dict(type="coco", root="data/coco")
schedule = dict(
    epochs=12,
    batch_size=16,
    optimizer="SGD",
    lr=0.002,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(8 / 12, 11 / 12),
    warmup_iters=500,
    max_grad_norm=None,
    num_workers=8,
)
