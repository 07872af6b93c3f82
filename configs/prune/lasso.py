"""Half of the inner channels by LASSO regression on training images; the next layer is then fitted by least squares.

Run:     espalier prune lasso MODEL
Expects: MODEL is a trained classifier of the generated shapes, as the config resnet18_shapes gives it.
         Other images, as train/<class>/* and val/<class>/*: --set data.type=folder --set data.root=FOLDER.
         A detector: --set data.type=scenes, or --set data.type=coco --set data.root=FOLDER.
Result:  not measured

Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, section 4: 5000 images, 10
places of each. A layer that reads 512 channels needs most of them: there are 9 unknowns for each that is kept.
"""

prune_ratio = 0.5
method = "lasso"
data = dict(type="shapes")
calibration = dict(num_batches=80, batch_size=64)
round_to = 8
min_channels = 8
