"""The answers of a deployed classifier, in batches, are those of the network in PyTorch."""

import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, save_model
from classify.evaluate import answers_of, predictions
from classify.export import export_classifier
from deploy.runtimes.onnxruntime import OnnxRunner


def test_a_file_in_batches_answers_as_the_network(tmp_path):
    torch.manual_seed(0)
    arch, classes = Architecture("resnet18", 7, 8), tuple("abcdefg")
    net = build_classifier(arch).eval()
    save_model(tmp_path / "model.safetensors", net, ModelCard("classifier", arch, classes, Preprocessing((32, 32))))
    settings = {"batch": 4, "precision": "fp32", "image": "float32"}
    export_classifier(tmp_path / "model.safetensors", tmp_path / "out", **settings, config=settings)
    images = [(torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8), label) for label in (*range(7), 3, 1)]
    done = []
    found = answers_of(
        OnnxRunner(tmp_path / "out/model.onnx").run, images, 4, lambda now, total: done.append((now, total))
    )
    expected = predictions(net, images, tmp_path / "work")
    assert done == [(4, 9), (8, 9), (9, 9)]
    assert found.labels.tolist() == [*range(7), 3, 1]
    for name in ("predicted", "is_in_top5"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()
    assert abs(found.confidence - expected.confidence).max() < 1e-4
