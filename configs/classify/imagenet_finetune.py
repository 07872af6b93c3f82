"""Fine-tune a slim network on ImageNet: 20 epochs at the small rate of Liu et al. (ICLR 2019), 1e-3.

Run:     espalier prune resnet34_a runs/classify/imagenet_dense.safetensors
         espalier classify train imagenet_finetune --set data.root=FOLDER
         Another slim network: --set start.file=FILE
Needs:   ImageNet as train/<class>/* and val/<class>/*, the slim model file, a GPU
Result:  not measured by us. Expected top-1 in their table 1: ResNet-34-A 72.56, ResNet-34-B 72.29 %, of 73.31 dense
Cost:    20 epochs, 0.19 of the dense training's for ResNet-34-A. Hours are not measured

The rate decides the comparison with training from scratch: see imagenet_finetune_large.
"""

start = dict(type="finetune", file="runs/classify/imagenet_dense-resnet34-A.safetensors")
data = dict(type="folder", root="data/imagenet")
image_size = 224
crop_share = 0.875  # scaled to 256
augmentation = dict(crop_scale=(0.08, 1.0))
schedule = dict(
    epochs=20,
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
