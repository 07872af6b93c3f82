"""For mmdet's own tools: importing this registers our backbone, our slim detector and the reader of our model files.

With `custom_imports = dict(imports=["detect.register"])` in its config, any of them opens a slim detector.
"""

# ruff: noqa: F401  # imported for what they register

import detect.model
import detect.slim
import detect.trunk
