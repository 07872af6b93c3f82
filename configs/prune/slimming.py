"""Half of all channels of a network trained with Network Slimming's penalty: those with the smallest BatchNorm scales.

Run:     espalier prune slimming MODEL
Expects: MODEL is a classifier whose channels all have a BatchNorm; without the penalty its scales say little.
         cifar_slimming and imagenet_slimming train with it and cut in one command; this cuts what was trained elsewhere
Result:  not measured by us yet; see cifar_slimming for the paper's

Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, section 3.
"""

prune_ratio = 0.5
criterion = "bn_scale"
reduction = "mean"
ranking = "global"
select_channels = True
round_to = 1
