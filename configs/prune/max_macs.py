"""At most two billion multiply-adds an image: the channels with the lowest scores in all layers are removed.

Run:     espalier prune max_macs MODEL
Expects: MODEL needs more than that, as a resnet34 does at 224 pixels (3.7 billion). Another limit: --set max_macs=N
Result:  not measured
"""

max_macs = 2_000_000_000
ranking = "global"
criterion = "l1"
round_to = 8
min_channels = 8
