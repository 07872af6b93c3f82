"""Which layers of a COCO detector to skip, in all of its parts, on 500 of the validation images.

Run:     espalier prune sensitivity sensitivity_coco MODEL
Expects: MODEL is a trained detector
Needs:   COCO 2017; from another folder: --set data.root=FOLDER
Result:  not measured
"""

data = dict(type="coco", root="data/coco")
