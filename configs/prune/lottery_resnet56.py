"""Lottery tickets of ResNet-56 on CIFAR-10: single weights at once and in rounds, and the L1 networks of Li et al.

Run:     espalier prune lottery lottery_resnet56 --set data.root=FOLDER
         VGG-16: --set backbone.name=vgg16_cifar --set "channels=({'preset': 'vgg16-A'},)"
         One rate and one seed, to begin with: --set "lrs=(0.1,)" --set "seeds=(0,)"
Needs:   cifar-10-python.tar.gz, or what was unpacked from it, in that folder; a GPU
Result:  not measured by us yet. Liu et al. on structured tickets at 0.1: 92.72 against 92.75 % for resnet56-A, 92.78
         against 92.90 for resnet56-B, with random first weights second. They find that at 0.1 the ticket brings
         nothing, and at 0.01 something for single weights alone, where both stay below what 0.1 gives
Cost:    43 trainings of 160 epochs for each rate and seed, as long as those of cifar_dense; 430 in all

Source: Frankle & Carbin, The Lottery Ticket Hypothesis, ICLR 2019: 20 % in each round. Liu et al., Rethinking the Value
of Network Pruning, ICLR 2019, section 6 and cifar/lottery-ticket in their code: convolutions alone, all together, 160
epochs, rates 0.1 and 0.01, rewound to iteration 0. Their ticket starts at the dense scale; its control at the sparse
one for single weights, at the dense one for channels. Here each has both.
"""

backbone = dict(name="resnet56_cifar")
data = dict(type="cifar", root="data/cifar10")
image_size = 32
schedule = dict(
    epochs=160,
    batch_size=64,
    optimizer="SGD",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(1 / 2, 3 / 4),
    warmup_iters=0,
    max_grad_norm=None,
    num_workers=2,
)
lrs = (0.1, 0.01)
one_shot = (0.488, 0.7903, 0.945)  # what the rounds below leave: 1 - 0.8^3, 1 - 0.8^7, 1 - 0.8^13
iterative = dict(share=0.2, rounds=(3, 7, 13))
channels = (dict(preset="resnet56-A"), dict(preset="resnet56-B"))
seeds = (0, 1, 2, 3, 4)
