"""Train a slim network on ImageNet from random weights: Scratch-B or Scratch-E of Liu et al. (ICLR 2019).

Run:     espalier prune resnet34_a runs/classify/imagenet_dense.safetensors
         espalier classify train imagenet_scratch --set data.root=FOLDER
         Scratch-E: --set start.budget=scratch_e. Another slim network: --set start.file=FILE; of vgg16 with
         --set schedule.lr=0.01, as it has no BatchNorm. Strict: --set start.finetune_epochs=20
Needs:   ImageNet as train/<class>/* and val/<class>/*, the slim model file (its widths alone are used), a GPU
Result:  not measured by us. Expected top-1 in their table 1: ResNet-34-A 72.77 (E) and 73.03 (B), ResNet-34-B
         72.55 (E) and 72.91 % (B), of 73.31 dense
Cost:    Scratch-B that of the dense training, but at most twice its epochs: ResNet-34-A 106, ResNet-34-B 118.
         Scratch-E 0.85 and 0.76 of it. Hours are not measured
"""

start = dict(type="scratch", file="runs/classify/imagenet_dense-resnet34-A.safetensors", budget="scratch_b")
data = dict(type="folder", root="data/imagenet")
image_size = 224
crop_share = 0.875  # scaled to 256
augmentation = dict(crop_scale=(0.08, 1.0))
schedule = dict(
    epochs=90,  # of the dense network
    batch_size=256,
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(1 / 3, 2 / 3),
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=8,
)
