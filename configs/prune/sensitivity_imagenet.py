"""Which layers of an ImageNet classifier to skip, on 2000 of the validation images.

Run:     espalier prune sensitivity sensitivity_imagenet MODEL
Expects: MODEL is a trained classifier
Needs:   ImageNet as image folders; from another folder: --set data.root=FOLDER
Result:  not measured
"""

data = dict(type="folder", root="data/imagenet")
num_images = 2000
round_to = 1
