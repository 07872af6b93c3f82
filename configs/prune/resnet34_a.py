"""ResNet-34-A of Li et al.: 20.15 million parameters for ImageNet, channels with the smallest L1 norm removed.

Run:     espalier prune resnet34_a MODEL
Expects: MODEL is a resnet34 with base_channels 64, or a detector around one. Other slim networks of the literature:
         --set preset=NAME, with a name from prune/choose/presets.py: all of table 1 of Liu et al., ICLR 2019, are
         there (resnet34-B, and for CIFAR vgg16-A, resnet56-A, -B, resnet110-A, -B). Then imagenet_finetune or
         imagenet_scratch, cifar_finetune or cifar_scratch, whose headers have the expected accuracy
Result:  benchmarks/presets.json: 1.18 times fewer MACs. Its accuracy is not measured
"""

preset = "resnet34-A"
criterion = "l1"
