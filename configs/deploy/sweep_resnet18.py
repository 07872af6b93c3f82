"""Which widths of a ResNet-18 are fast on this machine: nine ratios, four roundings, random weights.

Run:     espalier deploy sweep sweep_resnet18
Needs:   no download, no GPU. On a GPU: --set runtime=tensorrt_rtx, or another that runs ONNX files or engines
Result:  benchmarks/sweep-resnet18-cpu.json and docs/images/sweep.png, on a CPU
"""

backbone = "resnet18"
image_size = 224
batch = 1
prune_ratios = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
round_to = (1, 8, 16, 32)
latency = dict(warmup=5, rounds=30, num_threads=1)
