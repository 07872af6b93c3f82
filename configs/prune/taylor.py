"""Half of all channels: those whose removal changes the training loss least, to first order.

Run:     espalier prune taylor MODEL
Expects: MODEL is a trained classifier of the generated shapes, as the config resnet18_shapes gives it.
         Other images, as train/<class>/* and val/<class>/*: --set data.type=folder --set data.root=FOLDER.
         A detector: --set data.type=scenes, or --set data.type=coco --set data.root=FOLDER
Result:  not measured
"""

prune_ratio = 0.5
ranking = "global"
criterion = "taylor"
data = dict(type="shapes")
calibration = dict(num_batches=32, batch_size=4)
round_to = 8
min_channels = 8
