"""A slim ResNet-18 for generated shapes, trained further from the weights it kept.

Run:     espalier prune l1_half runs/classify/resnet18_shapes.safetensors
         espalier classify train resnet18_shapes_finetune
         From random weights instead: --set start.type=scratch
Needs:   the model file that the config resnet18_shapes gives; no GPU
Result:  not measured
"""

start = dict(type="finetune", file="runs/classify/resnet18_shapes-l1-0.5.safetensors")
data = dict(type="shapes", num_train=1200, num_val=300)
image_size = 64
schedule = dict(epochs=6, batch_size=32, lr=2e-3)
