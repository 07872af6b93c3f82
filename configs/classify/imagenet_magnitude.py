"""Unstructured pruning on ImageNet: the smallest 30 % of all convolutions' weights are zero, the rest is fine-tuned.

Run:     espalier classify train imagenet_magnitude --set data.root=FOLDER
         Another network: --set start.file=FILE. The paper's other share: --set method.prune_ratio=0.6
Needs:   ImageNet as train/<class>/* and val/<class>/*, the model file of the dense network, a GPU
Result:  not measured by us yet. Expected top-1, fine-tuned, 30 and 60 %, in table 6 of Liu et al.: ResNet-50 76.06 and
         76.09, VGG-16-BN 73.68 and 73.63 %. Nothing is cut, and no dense kernel is faster
Cost:    10 epochs, 0.11 of imagenet_dense. Hours are not measured

Source: Han et al., Learning both Weights and Connections, NeurIPS 2015, as in Liu et al., Rethinking the Value of
Network Pruning, ICLR 2019, section 4.3 and imagenet/weight-level: all convolutions together, 10 epochs at 1e-3.
"""

start = dict(type="finetune", file="runs/classify/imagenet_dense.safetensors")
data = dict(type="folder", root="data/imagenet")
image_size = 224
crop_share = 0.875  # scaled to 256
augmentation = dict(crop_scale=(0.08, 1.0))
method = dict(type="magnitude", prune_ratio=0.3)
schedule = dict(
    epochs=10,
    batch_size=256,
    optimizer="SGD",
    lr=1e-3,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(1.0,),  # constant
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=8,
)
