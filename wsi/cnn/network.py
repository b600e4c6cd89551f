"""The network: a small stack of convolutions without padding, so that a window and the whole image agree.

Output cell (i, j) sees the square of receptive_field_px input pixels whose corner is (i, j) * stride_px, and nothing
else. Only architectures whose cells (the stride_px square in the middle of what a cell sees) lie exactly on the pixel
grid are allowed: an image with margin_px around it yields one cell for each stride_px square of the image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

_MOST_LAYERS = 64
_MOST_CHANNELS = 4096
_LARGEST_KERNEL = 31


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution (square kernel, no padding), batch normalisation and ReLU.

    With a dilation of d the kernel looks only at every d-th value: it sees further for the same work.
    """

    channels: int
    kernel: int
    stride: int = 1
    dilation: int = 1

    def __post_init__(self) -> None:
        numbers = (self.channels, self.kernel, self.stride, self.dilation)
        if not all(type(number) is int for number in numbers):
            raise ValueError(f"a layer must be four whole numbers (channels, kernel, stride, dilation), got {numbers}")
        if not (1 <= self.channels <= _MOST_CHANNELS and 1 <= self.kernel <= _LARGEST_KERNEL):
            raise ValueError(
                f"a layer must have 1..{_MOST_CHANNELS} channels and a kernel of 1..{_LARGEST_KERNEL}: {numbers}"
            )
        if not 1 <= self.dilation <= _LARGEST_KERNEL:
            raise ValueError(f"a dilation must be in 1..{_LARGEST_KERNEL}, got {numbers}")
        if not 1 <= self.stride <= self.kernel:
            raise ValueError(f"a stride must be in 1..kernel (else pixels are skipped), got {numbers}")


class CellGeometry(ABC):
    """Where the output cells of a network lie on its input, and what they see. Base of every architecture."""

    __slots__ = ()

    @property
    @abstractmethod
    def classes(self) -> int:
        """The number of classes."""

    @property
    @abstractmethod
    def stride_px(self) -> int:
        """Input px from one output cell to the next."""

    @property
    @abstractmethod
    def receptive_field_px(self) -> int:
        """Side of the square of input px that one output cell sees."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The values a checkpoint stores, for ``architectures.read_architecture``."""

    @abstractmethod
    def build(
        self,
        *,
        mean: tuple[float, float, float] = (127.5, 127.5, 127.5),
        std: tuple[float, float, float] = (64.0, 64.0, 64.0),
        temperature: float = 1.0,
        seed: int = 0,
    ) -> DenseNetwork:
        """Build a new network of this architecture; the arguments are DenseNetwork's and the seed of its weights."""

    @property
    def margin_px(self) -> int:
        """Input px that a cell sees beyond its own square, on each side."""
        return (self.receptive_field_px - self.stride_px) // 2

    @property
    def centre_px(self) -> float:
        """Output cell (i, j) is centred on input (i, j) * stride_px + centre_px, 0.0 being a pixel's centre."""
        return (self.receptive_field_px - 1) / 2

    def cells(self, size_px: int) -> int:
        """Output cells along an input of size_px; 0 if it is smaller than the receptive field."""
        return max(0, (size_px - self.receptive_field_px) // self.stride_px + 1)


@dataclass(frozen=True, slots=True)
class Architecture(CellGeometry):
    """The layers before the 1 x 1 head, and the number of classes.

    Raises:
        ValueError: the numbers are absurd, or cells would not lie on the pixel grid (receptive field minus stride odd).
    """

    layers: tuple[Layer, ...]
    classes: int = 2

    def __post_init__(self) -> None:
        if not 1 <= len(self.layers) <= _MOST_LAYERS:
            raise ValueError(f"a network must have 1..{_MOST_LAYERS} layers, got {len(self.layers)}")
        if type(self.classes) is not int or not 2 <= self.classes <= _MOST_CHANNELS:
            raise ValueError(f"a network must have 2..{_MOST_CHANNELS} classes, got {self.classes}")
        if (self.receptive_field_px - self.stride_px) % 2:
            raise ValueError(
                f"receptive field {self.receptive_field_px} px minus stride {self.stride_px} px must be even: "
                "cells must lie on whole pixels"
            )

    @property
    def stride_px(self) -> int:
        """Input px from one output cell to the next."""
        return math.prod(layer.stride for layer in self.layers)

    @property
    def receptive_field_px(self) -> int:
        """Side of the square of input px that one output cell sees."""
        field, jump = 1, 1
        for layer in self.layers:
            field += (layer.kernel - 1) * layer.dilation * jump
            jump *= layer.stride
        return field

    def to_json(self) -> dict[str, Any]:
        """The values that from_json reads."""
        layers = [[layer.channels, layer.kernel, layer.stride, layer.dilation] for layer in self.layers]
        return {"layers": layers, "classes": self.classes}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Architecture:
        """Read the values of to_json.

        Raises:
            ValueError, TypeError, KeyError: the value is not an architecture.
        """
        if set(value) != {"layers", "classes"}:
            raise ValueError(f"an architecture must have layers and classes, got {sorted(value)}")
        layers = value["layers"]
        if len(layers) > _MOST_LAYERS:
            raise ValueError(f"a network must have 1..{_MOST_LAYERS} layers, got {len(layers)}")
        return cls(tuple(Layer(*numbers) for numbers in layers), value["classes"])

    def build(
        self,
        *,
        mean: tuple[float, float, float] = (127.5, 127.5, 127.5),
        std: tuple[float, float, float] = (64.0, 64.0, 64.0),
        temperature: float = 1.0,
        seed: int = 0,
    ) -> Network:
        """See CellGeometry.build."""
        return Network(self, mean=mean, std=std, temperature=temperature, seed=seed)


SMALL = Architecture(
    (
        Layer(16, 4, 2),
        Layer(32, 3, 2),
        Layer(48, 3, 2),
        Layer(64, 3),
        Layer(64, 3, dilation=2),
        Layer(64, 3, dilation=2),
    )
)
"""Receptive field 96 px, stride 8 px: at 2 um/px a cell of 16 um classified by the 192 um around it.

Tumour is drawn together with the stroma between its nests, so only its surroundings tell collagen in tumour from other
collagen: the field has to extend beyond a band of stroma (about 100 um) on both sides.
"""


class DenseNetwork(nn.Module, ABC):
    """A network that classifies every cell of an image of any size, by valid convolutions only. Base of all networks.

    Args:
        architecture: its geometry; a subclass narrows the type.
        mean, std: of the input's red, green and blue on the 0..255 scale; used to normalise it before the first layer.
        temperature: divisor of the logits: above 1 the probabilities are less certain.
    """

    def __init__(
        self,
        architecture: CellGeometry,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        temperature: float,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.mean = mean
        self.std = std
        self.temperature = temperature

    @abstractmethod
    def folded(self) -> nn.Module:
        """The same function for inference: normalisation folded into the convolutions, whose input is 0..255.

        Returns:
            Float32 (n, 3, rows, columns) to float32 logits (n, classes, i, j), in channels-last memory format (about
            1.5 times as fast on a CPU). A copy: later training does not affect it.
        """

    def normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Float32 images of the 0..255 scale, minus the mean, in units of the standard deviation."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=images.device).view(3, 1, 1)
        return (images.float() - mean) / std

    def tempered(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits divided by the temperature."""
        return logits if self.temperature == 1 else logits / self.temperature

    def weights(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """All learned values, by name, as float32 arrays (copies)."""
        state = self.state_dict()
        return {name: state[name].detach().cpu().numpy().copy() for name in weight_shapes(self.architecture)}

    def fill(self, weights: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]) -> None:
        """Set the values returned by weights().

        Raises:
            ValueError: names or shapes are not those of the architecture.
        """
        found = {name: tuple(array.shape) for name, array in weights.items()}
        if found != weight_shapes(self.architecture):
            raise ValueError("the weights do not fit the architecture")
        self.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()}, strict=False)


class Network(DenseNetwork):
    """Layers of convolution, batch normalisation and ReLU, and a 1 x 1 convolution to the logits of the classes.

    Args:
        architecture: the layers.
        mean, std, temperature: see DenseNetwork.
        seed: of the starting weights; no global random state is used.
    """

    def __init__(
        self,
        architecture: Architecture = SMALL,
        *,
        mean: tuple[float, float, float] = (127.5, 127.5, 127.5),
        std: tuple[float, float, float] = (64.0, 64.0, 64.0),
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(architecture, mean=mean, std=std, temperature=temperature)
        generator = torch.Generator().manual_seed(seed)
        channels = 3
        parts: list[nn.Module] = []
        for layer in architecture.layers:
            convolution = empty_convolution(channels, layer, bias=False)
            parts += [convolution, nn.BatchNorm2d(layer.channels), nn.ReLU(inplace=True)]
            channels = layer.channels
        self.body = nn.Sequential(*parts)
        self.head = empty_convolution(channels, Layer(architecture.classes, 1), bias=True)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of each cell: (n, 3, rows, columns) on the 0..255 scale, any type, to float (n, classes, i, j)."""
        return self.tempered(self.head(self.body(self.normalised(images))))

    def folded(self) -> nn.Sequential:
        """See DenseNetwork.folded."""
        shift = -torch.tensor(self.mean, dtype=torch.float64) / torch.tensor(self.std, dtype=torch.float64)
        scale = 1 / torch.tensor(self.std, dtype=torch.float64)
        parts: list[nn.Module] = []
        stack = list(self.body)
        for convolution, norm in zip(stack[0::3], stack[1::3], strict=True):
            if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                raise TypeError("the body must alternate convolution, normalisation and ReLU")
            parts += [folded_pair(convolution, norm, shift=shift, scale=scale), nn.ReLU(inplace=True)]
            shift, scale = torch.zeros(norm.num_features).double(), torch.ones(norm.num_features).double()
        weight, bias = double(self.head.weight), double(self.head.bias)
        parts.append(_filled(self.head, self.tempered(weight), self.tempered(bias)))
        folded = nn.Sequential(*parts).eval().requires_grad_(requires_grad=False)
        return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def weight_shapes(architecture: CellGeometry) -> dict[str, tuple[int, ...]]:
    """Name and shape of each array of weights, without allocating any."""
    with torch.device("meta"):
        state = architecture.build().state_dict()
    # batch normalisation's step counter has no influence with the fixed momentum used here
    return {name: tuple(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}


def folded_pair(
    convolution: nn.Conv2d,
    norm: nn.BatchNorm2d,
    *,
    shift: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> nn.Conv2d:
    """One convolution equivalent to a convolution without bias and its normalisation.

    Args:
        convolution: valid, without bias.
        norm: follows it.
        shift: float64 (inputs,), added to the input; None adds nothing.
        scale: float64 (inputs,), the input is multiplied by it before shift is added; None multiplies by nothing.
    """
    weight = double(convolution.weight)
    bias = torch.zeros(convolution.out_channels, dtype=torch.float64)
    if shift is not None:
        bias = (weight * shift.view(1, -1, 1, 1)).sum((1, 2, 3))
    if scale is not None:
        weight = weight * scale.view(1, -1, 1, 1)
    gain = double(norm.weight) / (double(norm.running_var) + norm.eps).sqrt()
    bias = (bias - double(norm.running_mean)) * gain + double(norm.bias)
    return _filled(convolution, weight * gain.view(-1, 1, 1, 1), bias)


class _EmptyConvolution(nn.Conv2d):
    """Without starting weights, as ``nn.utils.skip_init`` makes it, which also loads sympy: half a second."""

    def reset_parameters(self) -> None:
        """Leave them as they are allocated."""


def empty_convolution(inputs: int, layer: Layer, *, bias: bool) -> nn.Conv2d:
    """A valid convolution with uninitialised weights: no random state is used."""
    return _EmptyConvolution(inputs, layer.channels, layer.kernel, layer.stride, dilation=layer.dilation, bias=bias)


def double(values: torch.Tensor | None) -> torch.Tensor:
    """A float64 copy on the CPU."""
    if values is None:
        raise TypeError("the network's normalisation and head must have all their weights")
    return values.detach().cpu().double()


def _filled(like: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.Conv2d:
    layer = Layer(like.out_channels, like.kernel_size[0], like.stride[0], like.dilation[0])
    convolution = empty_convolution(like.in_channels, layer, bias=True)
    with torch.no_grad():
        convolution.weight.copy_(weight)
        if convolution.bias is not None:
            convolution.bias.copy_(bias)
    return convolution
