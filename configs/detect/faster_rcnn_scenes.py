"""A small Faster R-CNN on generated scenes, around the classifier of the config resnet18_shapes.

Run:     espalier detect train faster_rcnn_scenes
Needs:   that classifier, or another, slim or dense: --set start.file=FILE; no GPU
Result:  not measured
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
