"""Fine-tune a slim network on ImageNet at a large rate: up to 0.1 in the first of 20 epochs, then a cosine to zero.

Run:     espalier prune resnet34_a runs/classify/imagenet_dense.safetensors
         espalier classify train imagenet_finetune_large --set data.root=FOLDER
         Another slim network: --set start.file=FILE; of vgg16 with --set schedule.lr=0.01, as it has no BatchNorm
Needs:   ImageNet as train/<class>/* and val/<class>/*, the slim model file, a GPU
Result:  not measured by us. Expected above imagenet_finetune: Le & Hua, Network Pruning That Matters, ICLR 2021, find
         that large rates recover more than the usual small one; their code trains ResNet-34-B this way for 45 epochs
Cost:    20 epochs, 0.19 of the dense training's for ResNet-34-A. Hours are not measured
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
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    warmup_iters=5005,  # one epoch
    max_grad_norm=None,
    num_workers=8,
)
