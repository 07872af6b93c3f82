"""For mmdet's own tools: importing this registers our backbone and slim detector, and how our model files are read.

One line, `custom_imports = dict(imports=["detect.register"])`, in a config makes any of them open a slim detector.
"""

# ruff: noqa: F401  # imported for what they register

import detect.model
import detect.slim
import detect.trunk
