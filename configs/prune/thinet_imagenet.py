"""ThiNet's ResNet-50 on ImageNet: 70 % of the inner channels stay, those that the next layer misses most.

Run:     espalier prune thinet_imagenet MODEL --set data.root=FOLDER
         then imagenet_finetune or imagenet_scratch, with --set start.file=FILE
Expects: MODEL is a resnet50. --set preset=resnet50-thinet-50 or -30; of a vgg16, vgg16-thinet-conv; of a vgg16_gap,
         vgg16-thinet-gap or -tiny. The selection of the later paper: --set method=thinet_forward
Needs:   ImageNet as train/<class>/* and val/<class>/*; better a GPU for what follows
Result:  not measured by us yet. Expected top-1 in table 2 of Liu et al., ICLR 2019, as change against each one's own
         dense network: fine-tuned (by Luo et al.), Scratch-E, Scratch-B: ResNet-50-70 -3.10 -1.71 -1.01, -50 -4.13
         -2.82 -2.23, -30 -6.72 -5.21 -4.56; VGG-Conv -1.23 -2.75 +0.21, VGG-GAP -3.67 -4.66 -2.85, VGG-Tiny -11.61
         -14.36 -11.58

Source: Luo et al., ThiNet, ICCV 2017, section 3.2, and their code: 10 images of each class, 10 places of each. Not as
there: these are 10 000 images whatever their class, and nothing is trained between two layers.
"""

preset = "resnet50-thinet-70"
method = "thinet"
data = dict(type="folder", root="data/imagenet")
calibration = dict(num_batches=200, batch_size=50)
