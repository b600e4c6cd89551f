"""The networks by name, and architectures as checkpoints store them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsi.cnn.network import SMALL, Architecture, CellGeometry
from wsi.cnn.resnet import ResNetArchitecture

NETWORKS: Mapping[str, CellGeometry] = {
    "small": SMALL,
    "resnet18": ResNetArchitecture(network="resnet18"),
    "resnet34": ResNetArchitecture(network="resnet34"),
    "resnet50": ResNetArchitecture(network="resnet50"),
}
"""Receptive field and stride in px: small 96 and 8, resnet18 436 and 32, resnet34 900 and 32, resnet50 428 and 32."""


def read_architecture(value: Mapping[str, Any]) -> CellGeometry:
    """The architecture that to_json wrote.

    Raises:
        ValueError, TypeError, KeyError: the value is not an architecture.
    """
    return ResNetArchitecture.from_json(value) if "network" in value else Architecture.from_json(value)
