"""A public encoder from its weights and its description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from wsi.cnn.encoders.description import Description
from wsi.cnn.encoders.padded_resnet import PaddedResNet50
from wsi.cnn.encoders.vit import VisionTransformer, VitShape, shape_of
from wsi.cnn.encoders.weights import read_weights, timm_names
from wsi.errors import CheckpointError

_HEAD = ("fc.weight", "fc.bias")


def load_published(
    path: Path, description: Description, *, size_px: int, device: torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Build an encoder.

    Args:
        path: the file of the weights.
        description: of the encoder.
        size_px: side of the tiles.
        device: where it computes.

    Returns:
        Float32 (n, 3, size_px, size_px), normalised, to (n, features), both on the device.

    Raises:
        CheckpointError: the file cannot be read, holds weights that the network lacks or lacks some, or is of another
            network than described; tiles of this size do not fit.
    """
    weights = read_weights(path)
    try:
        network: nn.Module
        if description.network == "resnet50":
            network = PaddedResNet50({name: one for name, one in weights.items() if name not in _HEAD})
        else:
            network = _transformer(weights, description, size_px)
    except ValueError as error:
        raise CheckpointError(
            path,
            f"is no {description.title or description.name}: {error}",
            mend=f"take the weights of {description.source}" if description.source else "check its description",
        ) from error
    return network.to(device)


def _transformer(weights: Mapping[str, torch.Tensor], description: Description, size_px: int) -> VisionTransformer:
    named = timm_names(weights)
    shape = shape_of(named, heads=description.heads or 0, epsilon=description.epsilon)
    _check(shape, description)
    unknown = sorted(named.keys() - shape.weight_shapes().keys())
    if unknown:
        raise ValueError(f"{len(unknown)} weights are of no plain vision transformer, as {unknown[0]}")
    return VisionTransformer(
        shape, named, size_px=size_px, pooling=description.pooling, resampling=description.resampling
    )


def _check(shape: VitShape, description: Description) -> None:
    for name in ("patch_px", "width", "depth", "registers"):
        found, wanted = getattr(shape, name), getattr(description, name)
        if wanted is not None and found != wanted:
            raise ValueError(f"its {name} is {found} and not {wanted}")
