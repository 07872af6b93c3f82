"""A narrow ResNet-18 on generated shapes.

Run:     espalier classify train resnet18_shapes
Needs:   no download, no GPU
Result:  not measured
"""

start = dict(type="dense", name="resnet18", base_channels=16)
data = dict(type="shapes", num_train=1200, num_val=300)
image_size = 64
schedule = dict(epochs=12, batch_size=32, lr=4e-3)
