import json
from pathlib import Path

import pytest
from PIL import Image

RECORD = Path(__file__).parents[3] / "benchmarks/photos-cpu/results.json"


@pytest.fixture
def results():
    """Results of a real run, of an older version without pictures."""
    return json.loads(RECORD.read_text())


@pytest.fixture
def pictured(results, tmp_path):
    """Those results with a picture that lies in `tmp_path`, the run's folder."""
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    box = {"box_xyxy": [4, 20, 24, 40], "label": 1}
    found = {row["name"]: [box | {"score": 0.9}] for row in results["rows"]}
    return results | {"pictures": [{"file": "a.png", "size_hw": [48, 64], "truth": [box], "detections": found}]}
