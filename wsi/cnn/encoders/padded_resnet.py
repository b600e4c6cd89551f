"""ResNet-50 as published, with zeros around the tile and the mean over all locations: the encoder of older weights.

K. He et al., CVPR 2016, with the stride in the 3 x 3 convolution as torchvision has it, whose names the weights have.
(``wsi.cnn.resnet`` pads nothing, so that cells do not depend on the window that was read; features of a tile are those
of the published network only with its padding.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

WIDTH = 2048
_BLOCKS = (3, 4, 6, 3)


class PaddedResNet50(nn.Module):
    """The network without its head."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Build it from weights by torchvision's names, all of which must be there and no other.

        Raises:
            ValueError: a weight is missing, unknown or of another shape; says which.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for number, count in enumerate(_BLOCKS, start=1):
            inner = 32 << number
            blocks = [_Bottleneck(channels, inner, stride=1 if number == 1 else 2)]
            channels = 4 * inner
            blocks += [_Bottleneck(channels, inner, stride=1) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.endswith("num_batches_tracked")}
        given = {name: one for name, one in weights.items() if not name.endswith("num_batches_tracked")}
        for name, tensor in own.items():
            if name not in given:
                raise ValueError(f"there is no weight {name}")
            if given[name].shape != tensor.shape:
                raise ValueError(f"{name} has the shape {tuple(given[name].shape)} and not {tuple(tensor.shape)}")
        unknown = next((name for name in given if name not in own), None)
        if unknown is not None:
            raise ValueError(f"{unknown} is no weight of a ResNet-50 without its head")
        self.load_state_dict({name: one.float() for name, one in given.items()}, strict=False)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Describe tiles: float (n, 3, size, size), normalised, to (n, 2048)."""
        found = functional.max_pool2d(functional.relu(self.bn1(self.conv1(tiles))), 3, 2, 1)
        for number in range(1, 1 + len(_BLOCKS)):
            found = self.get_submodule(f"layer{number}")(found)
        return found.mean(dim=(2, 3))


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, inner: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner))
            if stride > 1 or channels != 4 * inner
            else None
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        found = functional.relu(self.bn1(self.conv1(values)))
        found = functional.relu(self.bn2(self.conv2(found)))
        found = self.bn3(self.conv3(found))
        return functional.relu(found + (values if self.downsample is None else self.downsample(values)))
