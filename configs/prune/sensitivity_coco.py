"""Which layers of a COCO detector are better skipped, in all of its parts, on 500 of the validation images.

Run:     espalier prune sensitivity configs/prune/sensitivity_coco.py MODEL
Needs:   COCO 2017 (elsewhere: --set data.root=FOLDER)
"""

data = dict(type="coco", root="data/coco")
