"""Which layers of the classifier of the config resnet18_shapes to skip: each is cut alone.

Run:     espalier prune sensitivity sensitivity_shapes runs/classify/resnet18_shapes.safetensors
Needs:   that classifier; no GPU
Result:  not measured
"""

data = dict(type="shapes", num_train=1200, num_val=300)
