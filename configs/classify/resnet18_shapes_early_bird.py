"""Early-bird ticket of a narrow ResNet-18 on generated shapes: the whole method in a minute or two.

Run:     espalier classify train resnet18_shapes_early_bird
Needs:   no download, no GPU
Result:  not measured by us yet: in so few epochs the masks move little, so it shows how the method works, not what
         it is worth

Source: as cifar_early_bird.
"""

start = dict(type="dense", name="resnet18", base_channels=16)
data = dict(type="shapes", num_train=600, num_val=150)
image_size = 32
method = dict(type="early_bird", prune_ratio=0.5, ratios=(0.3, 0.7), penalty=1e-3)
schedule = dict(epochs=12, batch_size=32, lr=4e-3)
