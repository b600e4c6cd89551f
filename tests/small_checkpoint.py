"""A small checkpoint whose weights are not those of a new network."""

from __future__ import annotations

from typing import Any

import torch

from wsi.cnn.checkpoint import Checkpoint
from wsi.cnn.network import Architecture, Layer, Network

TINY = Architecture((Layer(8, 4, 2), Layer(12, 3, 2)))


def fresh(architecture: Architecture = TINY, **changes: Any) -> Checkpoint:
    """A checkpoint of seeded weights and statistics, the same every time; other fields as they are given."""
    network = Network(architecture, mean=(200.0, 150.0, 180.0), std=(30.0, 40.0, 35.0), seed=5)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        elif name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    settled: dict[str, Any] = {"network": network.eval(), "mpp": 2.0, "provenance": {"seed": 5, "who": "é"}}
    return Checkpoint(**settled | changes)
