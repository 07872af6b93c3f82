"""For mmdet's own tools: importing this registers our backbone and slim detector, and how our model files are read.

One line, `custom_imports = dict(imports=["detect.register"])`, in a config makes any of them open a slim detector.
"""

import detect.model  # noqa: F401
import detect.slim  # noqa: F401
import detect.trunk  # noqa: F401
