"""Half of all channels, those without which the training loss would change least, to first order.

Run:     espalier prune configs/prune/taylor.py MODEL
Expects: MODEL is a trained classifier of the generated shapes, as configs/classify/resnet18_shapes.py makes it. For
         other images: --set data.type=folder --set data.root=FOLDER (with train/<class>/* and val/<class>/*); for a
         detector: --set data.type=scenes, or --set data.type=coco --set data.root=FOLDER
"""

prune_ratio = 0.5
ranking = "global"
criterion = "taylor"
data = dict(type="shapes")
calibration = dict(num_batches=32, batch_size=4)
round_to = 8
min_channels = 8
