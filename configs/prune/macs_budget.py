"""At most two billion multiply-adds an image, shared out by which channels of all layers score lowest.

Run:     espalier prune configs/prune/macs_budget.py MODEL
Expects: MODEL needs more than that, as a resnet34 does at 224 pixels (3.7 billion); for another: --set max_macs=N
"""

max_macs = 2_000_000_000
ranking = "global"
criterion = "l1"
round_to = 8
min_channels = 8
