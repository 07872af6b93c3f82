"""A small Faster R-CNN on generated scenes, around the classifier of configs/classify/resnet18_shapes.py.

Run:     espalier detect train configs/detect/faster_rcnn_scenes.py
Needs:   that classifier (any other, slim or dense: --set start.file=FILE); no GPU
"""

start = dict(type="transfer", file="runs/classify/resnet18_shapes.safetensors")
data = dict(type="scenes", num_train=300, num_val=60)
model = dict(
    image_size_hw=(192, 192),
    fpn_channels=48,
    head_channels=128,
    num_proposals=200,
    roi_samples=64,
    anchor_scale=4,
)
schedule = dict(epochs=8, batch_size=8, lr=2e-3)
