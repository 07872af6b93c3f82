"""Half of the channels of every group, those of the smallest L1 norm.

Run:     espalier prune configs/prune/l1_half.py MODEL
"""

prune_ratio = 0.5
criterion = "l1"
round_to = 8
