"""Half of the channels of every group: those with the smallest L1 norm are removed.

Run:     espalier prune l1_half MODEL
Expects: MODEL is a classifier or a detector
Result:  not measured
"""

prune_ratio = 0.5
criterion = "l1"
round_to = 8
