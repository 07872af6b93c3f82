"""Unstructured pruning on CIFAR: the smallest half of the weights of all convolutions is zero, the rest is fine-tuned.

Run:     espalier classify train cifar_magnitude --set data.root=FOLDER
         Another network: --set start.file=FILE. The pattern 2:4: --set method.pattern=2:4
         The paper's shares: --set method.prune_ratio=0.3 or 0.8 on CIFAR-10, 0.3 or 0.5 on CIFAR-100
         Scratch with the same masks: cifar_scratch --set start.file=runs/classify/cifar_magnitude.safetensors
         --set "method=dict(type='magnitude', masks='kept', scale='sparse')"
Needs:   CIFAR-10 or CIFAR-100 as images, train/<class>/* and val/<class>/*, the model file of the dense network
Result:  not measured by us yet. Expected top-1, fine-tuned, in table 6 of Liu et al.: CIFAR-10, 30 and 80 %, VGG-19
         93.51 and 93.52, PreResNet-110 95.06 and 94.55 %; CIFAR-100, 30 and 50 %, VGG-19 71.96 and 71.85,
         PreResNet-110 76.88 and 76.60 %. Nothing is cut, and no dense kernel is faster: zeros are multiplied alike
Cost:    40 epochs, a quarter of cifar_dense

Source: Han et al., Learning both Weights and Connections, NeurIPS 2015, as in Liu et al., Rethinking the Value of
Network Pruning, ICLR 2019, section 4.3 and their code: all convolutions together, 40 epochs at 1e-3.
"""

start = dict(type="finetune", file="runs/classify/cifar_dense.safetensors")
data = dict(type="folder", root="data/cifar10")
image_size = 32
augmentation = dict(padding=4)
method = dict(type="magnitude", prune_ratio=0.5)
schedule = dict(
    epochs=40,
    batch_size=64,
    optimizer="SGD",
    lr=1e-3,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(1.0,),  # constant
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=2,
)
