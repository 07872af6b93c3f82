"""Channels followed through one forward pass: which tensors are cut together."""
