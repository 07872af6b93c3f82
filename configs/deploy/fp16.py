"""Networks in half precision, for GPUs; scores and box arithmetic stay fp32.

Run:     espalier deploy export MODEL --config fp16
Expects: MODEL is a classifier or a detector. If its values leave the range of fp16 (65504), use the wider
         bf16: --set precision=bf16
Result:  benchmarks/precisions-bccd-cpu.json: 0.05 points of mAP below PyTorch. Its speed on a GPU is not measured
"""

precision = "fp16"
