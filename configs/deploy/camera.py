"""A camera's frames as they come: bytes of 1080 x 1920, cast and scaled inside the graph, boxes in their pixels.

Run:     espalier deploy export MODEL --config configs/deploy/camera.py
Expects: MODEL is a detector. Other frames: --set input_hw=[H,W]; what the detector sees: --set size_hw=[H,W],
         multiples of 32. Each shape is a file of its own
"""

image = "uint8"
input_hw = (1080, 1920)
