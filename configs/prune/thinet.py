"""Half of the inner channels by ThiNet: those that the next layer misses least on training images; it is then rescaled.

Run:     espalier prune thinet MODEL
Expects: MODEL is a trained classifier of the generated shapes, as the config resnet18_shapes gives it.
         Other images, as train/<class>/* and val/<class>/*: --set data.type=folder --set data.root=FOLDER.
         A detector: --set data.type=scenes, or --set data.type=coco --set data.root=FOLDER.
         The selection of the later paper: --set method=thinet_forward
Result:  not measured

Source: Luo et al., ThiNet, ICCV 2017, section 3.2: 10 images of each class, 10 places of each; their code keeps half.
"""

prune_ratio = 0.5
method = "thinet"
data = dict(type="shapes")
calibration = dict(num_batches=16, batch_size=64)
round_to = 8
min_channels = 8
