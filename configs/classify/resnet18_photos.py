"""A narrow ResNet-18 on a few thousand photographs, from random weights, in minutes on a CPU.

Run:     espalier classify train resnet18_photos --set data.root=FOLDER
Needs:   photographs as train/<class>/* and val/<class>/*; no GPU
Result:  docs/training.md has the curve for 3068 photographs of clothing in 10 classes
"""

start = dict(type="dense", name="resnet18", base_channels=16)
data = dict(type="folder", root="data/photos")
image_size = 64
augmentation = dict(crop_scale=(0.35, 1.0))
schedule = dict(epochs=15, batch_size=32, lr=4e-3)
validate_every = 1
objective = dict(label_smoothing=0.1)
