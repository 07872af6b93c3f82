"""Networks in half precision, for GPUs; scores and box arithmetic stay float32.

Run:     espalier deploy export MODEL --config configs/deploy/fp16.py
Expects: MODEL is a classifier or a detector. A model whose values leave the range of fp16 (65504) takes the wider one:
         --set precision=bf16
"""

precision = "fp16"
