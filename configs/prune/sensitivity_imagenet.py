"""Which layers of an ImageNet classifier are better skipped, on 2000 of the validation images.

Run:     espalier prune sensitivity configs/prune/sensitivity_imagenet.py MODEL
Needs:   ImageNet as image folders (elsewhere: --set data.root=FOLDER)
"""

data = dict(type="folder", root="data/imagenet")
num_images = 2000
round_to = 1
