"""The slim ResNet-18 trained on from its kept weights; `--set start.type=scratch` draws them anew.

Run:     espalier prune configs/prune/l1_half.py runs/classify/resnet18_shapes.safetensors
         espalier classify train configs/classify/resnet18_shapes_finetune.py
"""

start = dict(type="finetune", file="runs/classify/resnet18_shapes-l1-0.5.safetensors")
data = dict(type="shapes", num_train=1200, num_val=300)
image_size = 64
schedule = dict(epochs=6, batch_size=32, lr=2e-3)
