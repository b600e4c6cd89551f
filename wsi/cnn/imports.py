"""Public weights from other programs' files: torchvision's for ImageNet, MONAI's and TIAToolbox's for pathology.

Layouts (names of tensors) and preparation of the input, from the public sources:

- torchvision: ``torchvision.models.resnet18`` and so on; head ``fc``; ImageNet's mean and deviation.
- monai: ``monai.networks.nets.TorchVisionFCModel`` (``netadapter.py``), as the bundle pathology_tumor_detection uses
  it: the children of torchvision's network in a Sequential called ``features``, an average over 7 x 7 locations, head
  ``fc`` (a 1 x 1 convolution with one output before a sigmoid); grey values scaled to -1..1; 224 px at level 0.
- tiatoolbox: ``tiatoolbox.models.architecture.vanilla.CNNModel``: the same Sequential called ``feat_extract``, an
  average over all locations, head ``classifier``; grey values scaled to 0..1; PCam's patches of 96 px at 1 um/px, class
  1 tumour.

The networks here pad nothing (see ``wsi.cnn.resnet``), whereas those saw zeros around each patch: the probabilities are
those of the same weights within real tissue, not those that the other program prints for one patch.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from wsi.cnn.checkpoint import Checkpoint
from wsi.cnn.network import weight_shapes
from wsi.cnn.resnet import ResNetArchitecture, ResNetName
from wsi.errors import CheckpointError
from wsi.inputs import open_regular

Layout: TypeAlias = Literal["torchvision", "monai", "tiatoolbox"]

_Weights: TypeAlias = dict[str, NDArray[np.float32]]

_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_WRAPPERS = ("state_dict", "model", "network")
_HEAD = ("fc.weight", "fc.bias")
_LARGEST_FILE = 2 << 30
_CHECK = "check --layout, or the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Convention:
    """How a program names its tensors and prepares its input.

    Attributes:
        body: prefix of torchvision's children in a Sequential; empty if they have their own names.
        head: name of the last layer.
        mean, std: of the input on the 0..255 scale.
        pooled: locations averaged before the head, along a side.
        mpp: um per px that its pathology networks expect.
    """

    body: str
    head: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooled: int
    mpp: float


LAYOUTS: Mapping[str, _Convention] = {
    "torchvision": _Convention(
        body="", head="fc", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), pooled=7, mpp=0.5
    ),
    "monai": _Convention(
        body="features.", head="fc", mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5), pooled=7, mpp=0.25
    ),
    "tiatoolbox": _Convention(
        body="feat_extract.", head="classifier", mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0), pooled=3, mpp=1.0
    ),
}


def import_weights(
    path: str | PathLike[str],
    layout: Layout,
    *,
    mpp: float | None = None,
    stride_px: int = 32,
    tumour: int = 1,
) -> Checkpoint:
    """Make a checkpoint from another program's file.

    A head of two outputs is kept, and one of a single output (before a sigmoid) becomes the second of two. Any other
    head (ImageNet's 1,000 classes) is dropped: the checkpoint gets one of zeros, which returns 0.5 everywhere until it
    is trained, and ``provenance["head"]`` is ``untrained``.

    Args:
        path: safetensors, or a PyTorch file; the latter is read with ``weights_only=True`` and runs no code.
        layout: the program whose names the tensors have.
        mpp: um per px of the network's input; None uses the resolution that the layout's networks were trained at (0.5
            for torchvision, which has none).
        stride_px: px between output cells, 8, 16 or 32.
        tumour: which of two outputs is tumour.

    Raises:
        CheckpointError: there is no such file, it holds more than tensors, or tensors of another network or layout.
        ValueError: the layout, mpp, stride or class is invalid.
    """
    if layout not in LAYOUTS or tumour not in (0, 1):
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)} and tumour 0 or 1: {layout}, {tumour}")
    path, convention = Path(path), LAYOUTS[layout]
    found = dict(_renamed(path, _read(path), layout))
    network = _which(path, found, layout)
    head = _head(path, found, tumour)
    architecture = ResNetArchitecture(network=network, pooled=convention.pooled if head else 1, stride_px=stride_px)
    shapes = weight_shapes(architecture)
    found |= head or {name: np.zeros(shapes[name], np.float32) for name in _HEAD}
    _check(path, found, shapes, f"{network} in the layout of {layout}")
    built = architecture.build(mean=convention.mean, std=convention.std)
    built.fill(found)
    return Checkpoint(
        network=built.eval(),
        mpp=convention.mpp if mpp is None else mpp,
        provenance={"imported": path.name, "layout": layout, "head": "imported" if head else "untrained"},
    )


def _read(path: Path) -> Mapping[str, Any]:
    """The tensors of a file by their names in it, without any wrapper around them."""
    try:
        with open_regular(path) as file:
            is_safetensors = file.read(9)[8:9] == b"{"
        if path.stat().st_size > _LARGEST_FILE:
            raise CheckpointError(path, f"is larger than {_LARGEST_FILE >> 30} GiB", mend=_CHECK)
        if is_safetensors:
            content: object = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(path, "there is no such file", mend="check the path") from error
    except (pickle.UnpicklingError, AttributeError, ImportError) as error:
        raise CheckpointError(
            path, "holds more than tensors, or is not a PyTorch file: no code in it was run", mend="save its state_dict"
        ) from error
    except (
        SafetensorError,
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        OSError,
        MemoryError,
        RecursionError,
    ) as error:
        # a KeyError of the unpickler consists of a bare number
        line = next(
            (line for line in str(error).splitlines() if " " in line), "it is neither a torch zip file nor weights"
        )
        raise CheckpointError(path, f"cannot be read as weights: {line:.200}", mend=_CHECK) from error
    while isinstance(content, Mapping):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            return content
        content = inner
    raise CheckpointError(path, "holds no table of tensors (state_dict)", mend="save the network's state_dict")


def _renamed(path: Path, content: Mapping[str, Any], layout: Layout) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Torchvision's names, and float32 arrays; batch counters are left out."""
    convention = LAYOUTS[layout]
    for key, value in content.items():
        name = str(key).removeprefix("module.")
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(path, "is not a tensor", where=f"entry {name:.80}", mend="save its state_dict")
        if name.endswith("num_batches_tracked"):
            continue
        if not value.is_floating_point() or value.layout != torch.strided:
            raise CheckpointError(path, f"is {value.dtype}, not a weight", where=f"tensor {name:.80}", mend=_CHECK)
        array = value.detach().to(torch.float32).numpy().copy()
        if not np.isfinite(array).all():
            raise CheckpointError(path, "holds NaN or infinity", where=f"tensor {name:.80}", mend="get the file again")
        head, _, rest = name.rpartition(".")
        if head == convention.head:
            yield f"fc.{rest}", array
            continue
        child, _, rest = name.removeprefix(convention.body).partition(".")
        if not name.startswith(convention.body) or (convention.body and child not in _CHILDREN):
            raise CheckpointError(path, f"is not part of {layout}'s layout", where=f"tensor {name:.80}", mend=_CHECK)
        yield f"{_CHILDREN.get(child, child) if convention.body else child}.{rest}", array


def _which(path: Path, found: Mapping[str, NDArray[np.float32]], layout: str) -> ResNetName:
    """The network with as many blocks of the same kind in its third group."""
    blocks = {name.split(".")[1] for name in found if name.startswith("layer3.")}
    is_bottleneck = "layer3.0.conv3.weight" in found
    kinds: dict[tuple[int, bool], ResNetName] = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50"}
    kind = kinds.get((len(blocks), is_bottleneck))
    if kind is None:
        reason = f"is not a ResNet-18, 34 or 50 in the layout of {layout}"
        raise CheckpointError(path, reason, mend=_CHECK)
    return kind


def _head(path: Path, found: dict[str, NDArray[np.float32]], tumour: int) -> _Weights:
    """The head of two outputs; empty if the file has none that fits. Removes the file's from ``found``."""
    weight, bias = (found.pop(name, None) for name in _HEAD)
    if weight is None and bias is None:
        return {}
    if weight is None or weight.ndim not in (2, 4) or weight.shape[2:] not in ((), (1, 1)):
        raise CheckpointError(path, "is not a layer that classifies features", where="the network's head", mend=_CHECK)
    weight = weight.reshape(weight.shape[:2])
    bias = np.zeros(len(weight), np.float32) if bias is None else bias
    if bias.shape != (len(weight),):
        raise CheckpointError(path, f"has {bias.shape} biases for {len(weight)} outputs", where="the network's head")
    if len(weight) == 1:  # the sigmoid of one output is the softmax of it and zero
        return {"fc.weight": np.concatenate([0 * weight, weight]), "fc.bias": np.concatenate([0 * bias, bias])}
    if len(weight) == 2:
        order = [1 - tumour, tumour]
        return {"fc.weight": weight[order], "fc.bias": bias[order]}
    return {}


def _check(
    path: Path, found: Mapping[str, NDArray[np.float32]], shapes: Mapping[str, tuple[int, ...]], what: str
) -> None:
    for name in sorted(shapes.keys() | found.keys()):
        where = f"tensor {name:.80} (torchvision's name)"
        if name not in found:
            raise CheckpointError(path, f"is missing for a {what}", where=where, mend=_CHECK)
        if name not in shapes:
            raise CheckpointError(path, f"does not belong to a {what}", where=where, mend=_CHECK)
        if found[name].shape != shapes[name]:
            raise CheckpointError(
                path, f"is {found[name].shape}, a {what} needs {shapes[name]}", where=where, mend=_CHECK
            )
        if name.endswith("running_var") and found[name].min() < 0:
            raise CheckpointError(path, "holds a negative variance", where=where, mend="get the file again")
