"""Which layers of the classifier of configs/classify/resnet18_shapes.py are better skipped: each is cut alone.

Run:     espalier prune sensitivity configs/prune/sensitivity_shapes.py runs/classify/resnet18_shapes.safetensors
Needs:   that classifier; no GPU
"""

data = dict(type="shapes", num_train=1200, num_val=300)
