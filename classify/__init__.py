"""Images -> labels: classification backbones, their data, training, evaluation and model files."""
