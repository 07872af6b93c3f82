"""A square input of bytes, as cameras and video decoders give them; the cast to float is inside the graph.

Run:     espalier deploy export MODEL --config configs/deploy/camera.py
Expects: MODEL is a detector. Other shapes: --set size_hw=[H,W], multiples of 32; each shape is a file of its own
"""

image = "uint8"
size_hw = (640, 640)
