"""Fine-tune a slim network on CIFAR at a large rate: up to 0.1 in the first of 40 epochs, then a cosine to zero.

Run:     espalier prune resnet34_a runs/classify/cifar_dense.safetensors --set preset=resnet56-A
         espalier classify train cifar_finetune_large --set data.root=FOLDER
         Another slim network: --set start.file=FILE
Needs:   CIFAR-10 or CIFAR-100 as images, train/<class>/* and val/<class>/*, the slim model file; better a GPU
Result:  not measured by us. Expected above cifar_finetune: Le & Hua, Network Pruning That Matters, ICLR 2021, find that
         large rates recover more than the usual small one; their code trains ResNet-56-B this way for 40 to 152 epochs
Cost:    40 epochs, 0.22 of the dense training's for ResNet-56-A. Hours are not measured
"""

start = dict(type="finetune", file="runs/classify/cifar_dense-resnet56-A.safetensors")
data = dict(type="folder", root="data/cifar10")
image_size = 32
augmentation = dict(padding=4)
schedule = dict(
    epochs=40,
    batch_size=64,
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    warmup_iters=782,  # one epoch
    max_grad_norm=None,
    num_workers=2,
)
