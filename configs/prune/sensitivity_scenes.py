"""Which layers of the detector of configs/detect/faster_rcnn_scenes.py are better skipped, in all of its parts.

Run:     espalier prune sensitivity configs/prune/sensitivity_scenes.py runs/detect/faster_rcnn_scenes.safetensors
Needs:   that detector; no GPU
"""

data = dict(type="scenes", num_train=300, num_val=60)
