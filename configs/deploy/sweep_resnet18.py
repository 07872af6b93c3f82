"""Which widths of a ResNet-18 are fast on this machine: nine ratios, four roundings, random weights.

Run:     espalier deploy sweep configs/deploy/sweep_resnet18.py
Needs:   nothing downloaded, no GPU; on one, --set runtime=tensorrt_rtx or another that runs ONNX files or engines
"""

backbone = "resnet18"
image_size = 224
batch = 1
prune_ratios = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
round_to = (1, 8, 16, 32)
latency = dict(warmup=5, rounds=30, num_threads=1)
