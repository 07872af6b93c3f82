"""ResNet-50-2x by LASSO regression on ImageNet: the inner widths of He et al.; each next layer is fitted again.

Run:     espalier prune lasso_imagenet MODEL --set data.root=FOLDER
         then imagenet_finetune or imagenet_scratch, with --set start.file=FILE
Expects: MODEL is a resnet50. VGG-16-5x, of a vgg16: --set preset=vgg16-5x. With the paper's samplers, of a
         resnet50_select: --set preset=resnet50-2x-sampled
Needs:   ImageNet as train/<class>/* and val/<class>/*; better a GPU for what follows
Result:  not measured by us yet. Expected top-1 in table 3 of Liu et al., ICLR 2019, as change against each one's own
         dense network: fine-tuned (by He et al.), Scratch-E, Scratch-B: ResNet-50-2x -3.25 -1.55 -1.07, VGG-16-5x -2.67
         -3.46 -0.51

Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, section 4, and their code:
5000 images, 10 places of each. Not as there: no sampler before a block, so that ResNet-50-2x has 3.16e9 MACs, not
2.73e9; resnet50-2x-sampled has them.
"""

preset = "resnet50-2x"
method = "lasso"
data = dict(type="folder", root="data/imagenet")
calibration = dict(num_batches=500, batch_size=10)
