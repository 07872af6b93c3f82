"""Which layers of the detector of the config faster_rcnn_scenes to skip, in all of its parts.

Run:     espalier prune sensitivity sensitivity_scenes runs/detect/faster_rcnn_scenes.safetensors
Needs:   that detector; no GPU
Result:  not measured
"""

data = dict(type="scenes", num_train=300, num_val=60)
