"""A camera's frames as they come: bytes of 1080 x 1920, cast and scaled inside the graph, boxes in their pixels.

Run:     espalier deploy export MODEL --config camera
Expects: MODEL is a detector. Each shape is a file of its own. Other frames: --set input_hw=[H,W].
         What the detector sees, multiples of 32: --set size_hw=[H,W]
Result:  not measured
"""

image = "uint8"
input_hw = (1080, 1920)
