"""Half of the channels of a whole detector: backbone, neck, RPN and RoI head.

Run:     espalier prune detector_half MODEL
Expects: MODEL is a detector. Fewer parts: --set "parts=('neck','roi_head')"
Result:  not measured
"""

prune_ratio = 0.5
criterion = "l1"
round_to = 8
parts = ("backbone", "neck", "rpn_head", "roi_head")
