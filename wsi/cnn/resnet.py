"""Residual networks that classify every cell of an image: ResNet-18, 34 and 50 without padding.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016; the 50 has its stride in the
3 x 3 convolution, as torchvision's has. Names and shapes of the weights are torchvision's, so that its files fit.

The published networks pad every convolution with zeros. A cell's output then depends on its distance from the edge of
the window that happened to be read, and windows differ from the whole slide. Here nothing is padded: the input has a
margin of real context around it (margin_px), each convolution is valid, and the shortcut of a block is cropped to the
output of its convolutions. Away from the edges this is the same function as the padded network, cell by cell.

The field of these networks is an odd number of px and their stride an even one, so that the pixel in the middle of a
cell's field cannot be the middle of its square: the last row and column of the input are not used, and a cell's field
is centred half a pixel up and left of the middle of its square.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from wsi.cnn.network import CellGeometry, DenseNetwork, Layer, double, empty_convolution, folded_pair

ResNetName: TypeAlias = Literal["resnet18", "resnet34", "resnet50"]

_BLOCKS: Mapping[str, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
_WIDTHS = (64, 128, 256, 512)
_STRIDES = (8, 16, 32)
_MOST_POOLED = 16
_MOST_CLASSES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetArchitecture(CellGeometry):
    """A residual network.

    Attributes:
        network: which one.
        classes: their number.
        pooled: features of pooled x pooled locations, 32 px apart, are averaged before the head. 1 uses each location
            alone; weights trained on patches of one size imply theirs (7 for patches of 224 px).
        stride_px: px between cells: 32 as published, 16 or 8 by dilated convolutions in the last groups. The weights
            stay the same, and every second or fourth cell is a cell of stride 32.
    """

    network: ResNetName
    classes: int = 2
    pooled: int = 1
    stride_px: int = 32

    def __post_init__(self) -> None:
        if self.network not in _BLOCKS:
            raise ValueError(f"a residual network must be one of {', '.join(_BLOCKS)}, got {self.network!r:.40}")
        numbers = (self.classes, self.pooled, self.stride_px)
        if not all(type(number) is int for number in numbers):
            raise ValueError(f"classes, pooled and stride_px must be whole numbers, got {numbers}")
        if not (2 <= self.classes <= _MOST_CLASSES and 1 <= self.pooled <= _MOST_POOLED):
            raise ValueError(f"a network must have 2..{_MOST_CLASSES} classes and pooled 1..{_MOST_POOLED}: {numbers}")
        if self.stride_px not in _STRIDES:
            raise ValueError(f"a residual network's stride must be 8, 16 or 32 px, got {self.stride_px}")

    @property
    def receptive_field_px(self) -> int:
        """Side of the square of input px of one output cell; its last row and column are not used."""
        field, jump = 11, 4  # the 7 x 7 convolution and the pooling, both of stride 2
        for group, blocks in enumerate(_BLOCKS[self.network]):
            for block in range(blocks):
                kernels = 1 if self.is_bottleneck else 2
                strides = group > 0 and block == 0
                field += 2 * jump
                jump *= 2 if strides else 1
                field += 2 * jump * (kernels - 1)
        return field + (self.pooled - 1) * 32 + 1

    @property
    def is_bottleneck(self) -> bool:
        """Whether a block is 1 x 1, 3 x 3, 1 x 1 rather than two of 3 x 3."""
        return self.network == "resnet50"

    @property
    def blocks(self) -> tuple[int, int, int, int]:
        """Number of blocks in each of the four groups."""
        return _BLOCKS[self.network]

    def to_json(self) -> dict[str, Any]:
        """The values that from_json reads."""
        return {
            "network": self.network,
            "classes": self.classes,
            "pooled": self.pooled,
            "stride_px": self.stride_px,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ResNetArchitecture:
        """Read the values of to_json.

        Raises:
            ValueError, TypeError: the value is not an architecture.
        """
        if set(value) != {"network", "classes", "pooled", "stride_px"}:
            raise ValueError(f"a residual network needs network, classes, pooled and stride_px, got {sorted(value)}")
        return cls(**value)

    def build(
        self,
        *,
        mean: tuple[float, float, float] = (127.5, 127.5, 127.5),
        std: tuple[float, float, float] = (64.0, 64.0, 64.0),
        temperature: float = 1.0,
        seed: int = 0,
    ) -> ResNet:
        """See CellGeometry.build."""
        return ResNet(self, mean=mean, std=std, temperature=temperature, seed=seed)


class ResNet(DenseNetwork):
    """A residual network of valid convolutions.

    Args:
        architecture: which one.
        mean, std, temperature: see DenseNetwork.
        seed: of the starting weights; no global random state is used.
    """

    def __init__(
        self,
        architecture: ResNetArchitecture,
        *,
        mean: tuple[float, float, float] = (127.5, 127.5, 127.5),
        std: tuple[float, float, float] = (64.0, 64.0, 64.0),
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(architecture, mean=mean, std=std, temperature=temperature)
        self._pooled = architecture.pooled
        self.conv1 = empty_convolution(3, Layer(_WIDTHS[0], 7, 2), bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(_WIDTHS[0])
        channels, jump, dilation = _WIDTHS[0], 4, 1
        groups: list[nn.Sequential] = []
        for group, count in enumerate(architecture.blocks):
            blocks: list[nn.Module] = []
            for number in range(count):
                before, stride = dilation, 1
                if group > 0 and number == 0:
                    stride = 2 if jump < architecture.stride_px else 1
                    jump, dilation = jump * stride, dilation * 2 // stride
                kind = _Bottleneck if architecture.is_bottleneck else _Basic
                block = kind(channels, _WIDTHS[group], stride=stride, dilations=(before, dilation))
                blocks.append(block)
                channels = block.channels
            groups.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self._spread = dilation
        self.fc: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, channels, architecture.classes
        )
        self._start(torch.Generator().manual_seed(seed))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of each cell: (n, 3, rows, columns) on the 0..255 scale, any type, to float (n, classes, i, j)."""
        return self.tempered(self._judged(self.normalised(images)))

    def folded(self) -> nn.Module:
        """See DenseNetwork.folded."""
        return _Folded(self).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def _judged(self, pixels: torch.Tensor) -> torch.Tensor:
        features = functional.relu(self.bn1(self.conv1(pixels[..., :-1, :-1])), inplace=True)
        features = functional.max_pool2d(features, 3, 2)
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return functional.conv2d(self._averaged(features), self.fc.weight[:, :, None, None], self.fc.bias)

    def _averaged(self, features: torch.Tensor) -> torch.Tensor:
        """The mean of pooled x pooled locations that are _spread cells apart."""
        if self._pooled == 1:
            return features
        reach = (self._pooled - 1) * self._spread
        rows, columns = features.shape[2] - reach, features.shape[3] - reach
        at = range(0, reach + 1, self._spread)
        down = sum((features[:, :, row : row + rows] for row in at), torch.zeros((), device=features.device))
        both = sum((down[..., column : column + columns] for column in at), torch.zeros((), device=features.device))
        return both / self._pooled**2

    def _start(self, generator: torch.Generator) -> None:
        """Initialise weights as in the paper (He's normal distribution by outputs); blocks begin as their shortcut.

        The last normalisation of each block begins at zero: P. Goyal et al., "Accurate, Large Minibatch SGD: Training
        ImageNet in 1 Hour", 2017.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(module, _Block):
                nn.init.zeros_(module.last_norm.weight)
        if not self.fc.weight.is_meta:
            nn.init.normal_(self.fc.weight, std=0.01, generator=generator)
            nn.init.zeros_(self.fc.bias)


class _Block(nn.Module, ABC):
    """Convolutions beside a shortcut that is cropped to their output."""

    def __init__(self, inputs: int, channels: int, *, stride: int, crop: int) -> None:
        super().__init__()
        self.channels = channels
        self.crop = crop
        self.stride = stride
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != channels:
            shortcut = empty_convolution(inputs, Layer(channels, 1), bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(channels))

    @property
    @abstractmethod
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation before the shortcut is added."""

    @abstractmethod
    def convolved(self, features: torch.Tensor) -> torch.Tensor:
        """The output of the block's convolutions."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        convolved = self.convolved(features)
        rows, columns = convolved.shape[2:]
        kept = features[:, :, self.crop :: self.stride, self.crop :: self.stride][:, :, :rows, :columns]
        shortcut = kept if self.downsample is None else self.downsample(kept)
        return functional.relu(convolved + shortcut, inplace=True)


class _Basic(_Block):
    def __init__(self, inputs: int, width: int, *, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__(inputs, width, stride=stride, crop=dilations[0] + stride * dilations[1])
        self.conv1 = empty_convolution(inputs, Layer(width, 3, stride, dilations[0]), bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(width)
        self.conv2 = empty_convolution(width, Layer(width, 3, 1, dilations[1]), bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(width)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return _norm(self.bn2)

    def convolved(self, features: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = functional.relu(self.bn1(self.conv1(features)), inplace=True)
        outer: torch.Tensor = self.bn2(self.conv2(inner))
        return outer


class _Bottleneck(_Block):
    def __init__(self, inputs: int, width: int, *, stride: int, dilations: tuple[int, int]) -> None:
        super().__init__(inputs, 4 * width, stride=stride, crop=dilations[0])
        self.conv1 = empty_convolution(inputs, Layer(width, 1), bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(width)
        self.conv2 = empty_convolution(width, Layer(width, 3, stride, dilations[0]), bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(width)
        self.conv3 = empty_convolution(width, Layer(4 * width, 1), bias=False)
        self.bn3: nn.Module = nn.BatchNorm2d(4 * width)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return _norm(self.bn3)

    def convolved(self, features: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = functional.relu(self.bn1(self.conv1(features)), inplace=True)
        inner = functional.relu(self.bn2(self.conv2(inner)), inplace=True)
        outer: torch.Tensor = self.bn3(self.conv3(inner))
        return outer


class _Folded(nn.Module):
    """A residual network whose normalisations are folded into its convolutions."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        folded = copy.deepcopy(network).cpu().eval()
        deviation = torch.tensor(network.std, dtype=torch.float64)
        shift = -torch.tensor(network.mean, dtype=torch.float64) / deviation
        folded.conv1 = folded_pair(folded.conv1, _norm(folded.bn1), shift=shift, scale=1 / deviation)
        folded.bn1 = nn.Identity()
        for module in folded.modules():
            if isinstance(module, _Block):
                _fold(module)
        with torch.no_grad():
            folded.fc.weight.copy_(network.tempered(double(network.fc.weight)))
            folded.fc.bias.copy_(network.tempered(double(network.fc.bias)))
        self._network = folded.requires_grad_(requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._network._judged(images)  # noqa: SLF001  (its own class's other half)


def _fold(block: _Block) -> None:
    for number in (1, 2, 3):
        convolution, norm = getattr(block, f"conv{number}", None), getattr(block, f"bn{number}", None)
        if isinstance(convolution, nn.Conv2d):
            setattr(block, f"conv{number}", folded_pair(convolution, _norm(norm)))
            setattr(block, f"bn{number}", nn.Identity())
    if block.downsample is not None:
        convolution, norm = block.downsample
        block.downsample = nn.Sequential(folded_pair(_convolution(convolution), _norm(norm)))


def _norm(module: object) -> nn.BatchNorm2d:
    if not isinstance(module, nn.BatchNorm2d):
        raise TypeError("the network is folded already")
    return module


def _convolution(module: nn.Module) -> nn.Conv2d:
    if not isinstance(module, nn.Conv2d):
        raise TypeError("a shortcut must be a convolution and its normalisation")
    return module
