"""Lottery tickets of a narrow ResNet-18 on generated shapes: every part of the study, in three minutes.

Run:     espalier prune lottery lottery_shapes
Needs:   no download, no GPU
Result:  not measured by us yet: so small a network on so few images shows how the study works, not whether tickets win

Source: as lottery_resnet56.
"""

backbone = dict(name="resnet18", base_channels=8)
data = dict(type="shapes", num_train=240, num_val=120)
image_size = 32
schedule = dict(epochs=3, batch_size=16, lr=0.05, optimizer="SGD", momentum=0.9, milestones=(2 / 3,), warmup_iters=0)
lrs = (0.05, 0.005)
one_shot = (0.36,)
iterative = dict(share=0.2, rounds=(2,))
channels = (dict(prune_ratio=0.5, criterion="l1", round_to=1),)
channel_rounds = (dict(cut=dict(prune_ratio=0.3, criterion="l1", round_to=1), rounds=(2,)),)
