"""ResNet-34-A of Li et al., without the channels of the smallest L1 norm: 20.15 million parameters for ImageNet.

Run:     espalier prune configs/prune/resnet34_a.py MODEL
Expects: MODEL is a resnet34 with base_channels 64, or a detector around one. Other slim networks of the literature:
         --set preset=NAME, with the names of prune/presets.py
"""

preset = "resnet34-A"
criterion = "l1"
