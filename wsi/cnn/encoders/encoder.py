"""An encoder made elsewhere: a file that turns the pixels of a tile into a row of features.

torch.export archives (.pt2, by ``exported``) and ONNX files (by onnxruntime, which knows only mathematical operations)
are read without risk, and so are the weights of encoders that are described (``description``). TorchScript, and
torch.export archives that need more than ``exported`` supports, go through torch's own loaders, which can run code from
the file: only if the caller says that the file is trusted.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from wsi.cnn.device import pick_device
from wsi.cnn.encoders.description import Description
from wsi.cnn.encoders.exported import ARCHIVE, DAMAGES, load_exported
from wsi.cnn.encoders.published import load_published
from wsi.cnn.encoders.weights import find_weights
from wsi.errors import CheckpointError, PathologyError
from wsi.inputs import open_regular

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_WANTED = "use a torch.export (.pt2) or ONNX file that maps float32 (batch, 3, size, size) to (batch, features)"
_NAMED = "say whose they are, as in uni2-h=model.safetensors: sentinode encoders lists the names"
_DYNAMIC = "export it with a dynamic first dimension"
_PROBES = 3
# of the largest feature: allows for rounding in other batch shapes, far less than an influence of neighbours
_ROUNDING = 2e-3

_Three: TypeAlias = tuple[float, float, float]
_Forward: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoder:
    """A probed encoder, ready on its device.

    Attributes:
        path: the file.
        digest: hex sha256 of the file.
        kind: "torch.export", "onnx", "torchscript", or the network of a description.
        size_px: side of the square tiles it expects.
        width: features per tile.
        mean, std: of the red, green and blue channel; the input is (value / 255 - mean) / std.
        device: where it computes.
        forward: float32 (batch, 3, size_px, size_px) on the device to (batch, width).
        description: of the weights; None where the file holds the network.
    """

    path: Path
    digest: str
    kind: str
    size_px: int
    width: int
    mean: _Three
    std: _Three
    device: torch.device
    forward: _Forward
    description: Description | None = None

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The features of tiles, not checked for NaN.

        Args:
            pixels: uint8 (batch, size_px, size_px, 3), RGB.

        Returns:
            Float32 (batch, width).
        """
        return _encoded(self.forward, pixels, mean=self.mean, std=self.std, device=self.device)

    def to_json(self) -> dict[str, Any]:
        """Everything that determines the features: the file, the size of its tiles and the scaling of pixels."""
        described = {} if self.description is None else self.description.to_json()
        return {
            "sha256": self.digest,
            "size_px": self.size_px,
            "mean": list(self.mean),
            "std": list(self.std),
            **described,
        }


def load_encoder(
    path: str | PathLike[str],
    *,
    size_px: int,
    mean: _Three = IMAGENET_MEAN,
    std: _Three = IMAGENET_STD,
    device: str = "auto",
    trust: bool = False,
    description: Description | None = None,
) -> Encoder:
    """Load an encoder and try it on a batch of noise.

    Args:
        path: torch.export archive, ONNX file of up to 2 GB without external data, or TorchScript; with a description
            the weights, or a folder of them as downloaded.
        size_px: side of the tiles.
        mean: per channel, of pixels from 0 to 1.
        std: likewise.
        device: auto, cpu or cuda.
        trust: also load files that can run code: TorchScript, and archives that ``exported`` refuses.
        description: of an encoder whose file holds weights alone.

    Raises:
        CheckpointError: there is no such file; it is not an encoder; it would have to be trusted; it takes other images
            or a fixed batch; it returns anything but finite (batch, features); a tile's features depend on its
            neighbours in the batch, or differ from call to call.
        PathologyError: the device does not exist, or onnxruntime is not installed.
        ValueError: size_px is not positive, a mean is not finite, or a std is not positive.
    """
    if size_px < 1 or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(f"an encoder needs a positive size and std, got {size_px} px, mean {mean}, std {std}")
    path, target = Path(path), pick_device(device)
    if description is None:
        digest, kind = _digest(path), _kind(path)
        forward = _LOADERS[kind](path, size_px, target, trust)
    else:
        path = find_weights(path)
        digest, kind = _digest(path), description.network
        forward = load_published(path, description, size_px=size_px, device=target)
    width = _probed(path, forward, size_px=size_px, mean=mean, std=std, device=target)
    return Encoder(
        path=path,
        digest=digest,
        kind=kind,
        size_px=size_px,
        width=width,
        mean=mean,
        std=std,
        device=target,
        forward=forward,
        description=description,
    )


def check_encoder(path: str | PathLike[str], description: Description | None = None) -> None:
    """Refuse in a moment what ``load_encoder`` would refuse: no file, of no known kind, or without its library.

    Raises:
        CheckpointError: there is no such file, or it is not an encoder.
        PathologyError: onnxruntime is not installed.
    """
    path = Path(path)
    try:
        if description is not None:
            with open_regular(find_weights(path)):
                return
        kind = _kind(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if kind == "onnx":
        _runtime(path)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError(path, "there is no such file", mend="check the path given as the encoder")
    return CheckpointError(path, f"cannot be read: {error.strerror or error}")


def _digest(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _kind(path: Path) -> str:
    with open_regular(path) as file:
        start = file.read(16)
    if start.startswith(b"PK\x03\x04"):
        return _kind_of_archive(path)
    if start.startswith(b"\x80"):
        raise CheckpointError(path, "is a Python pickle, which runs code when loaded: it was not opened", mend=_WANTED)
    if start[8:9] == b"{":
        raise CheckpointError(path, "is a safetensors file: weights without their network", mend=_NAMED)
    # an ONNX file is a protobuf message whose first field, the version, is a varint
    if start.startswith(b"\x08") or path.suffix.lower() == ".onnx":
        return "onnx"
    raise CheckpointError(path, "is not an encoder of a known kind", mend=_WANTED)


def _kind_of_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (*DAMAGES, ValueError, NotImplementedError) as error:
        raise CheckpointError(path, f"is a damaged archive: {error}", mend="copy the file again") from error
    if ARCHIVE in names:
        return "torch.export"
    if "constants.pkl" in names:
        return "torchscript"
    raise CheckpointError(
        path, "is a zip archive of pickled code (a PyTorch .pt or .pth): it was not opened", mend=_WANTED
    )


def _load_exported(path: Path, size_px: int, device: torch.device, trust: bool) -> _Forward:  # noqa: FBT001  (one of a table)
    try:
        network = load_exported(path)
    except CheckpointError:
        if not trust:
            raise
        return _load_trusted(path, device)
    _check_shape(path, network.input_shape, size_px)
    if network.input_dtype != torch.float32:
        raise CheckpointError(path, f"expects {network.input_dtype}", mend="export it in float32")
    there = network.to(device)
    before = [weight._version for weight in there.weights.values()]  # noqa: SLF001  (torch's count of changes in place)

    def forward(batch: torch.Tensor) -> torch.Tensor:
        features = there(batch)
        if [weight._version for weight in there.weights.values()] != before:  # noqa: SLF001
            raise CheckpointError(path, "changes its own weights while computing", mend="export it after model.eval()")
        return features

    return forward


def _load_trusted(path: Path, device: torch.device) -> _Forward:
    from torch.export.passes import move_to_device_pass  # noqa: PLC0415  (slow import)

    try:
        program = torch.export.load(path)
        module: _Forward = move_to_device_pass(program, device).module()
    except Exception as error:
        raise CheckpointError(path, f"cannot be loaded by torch.export: {error!s:.200}", mend=_WANTED) from error
    return module


def _load_torchscript(path: Path, size_px: int, device: torch.device, trust: bool) -> _Forward:  # noqa: ARG001, FBT001
    if not trust:
        raise CheckpointError(
            path,
            "is TorchScript, which can run code when loaded: it was not opened",
            mend="export it with torch.export or to ONNX, or pass --trust-model if you trust its source",
        )
    try:
        loader: Any = torch.jit.load  # it is untyped
        module: _Forward = loader(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(path, f"cannot be loaded as TorchScript: {error!s:.200}", mend=_WANTED) from error
    return module


def _runtime(path: Path) -> Any:  # noqa: ANN401  (a module that need not be there)
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise PathologyError(
            path, "is an ONNX file, which needs onnxruntime", mend="pip install 'sentinode[onnx]'"
        ) from error


def _load_onnx(path: Path, size_px: int, device: torch.device, trust: bool) -> _Forward:  # noqa: ARG001, FBT001
    runtime = _runtime(path)
    options = runtime.SessionOptions()
    # one thread per session: tiles are spread over threads, and sums do not depend on their number
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    on_gpu = device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers()
    try:
        # from bytes, next to an empty folder: no other file is read, so the digest covers all weights
        with TemporaryDirectory() as empty:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
            session = runtime.InferenceSession(
                path.read_bytes(), options, providers=["CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"]
            )
    except Exception as error:  # onnxruntime has no public error base class
        raise CheckpointError(
            path, f"cannot be loaded by onnxruntime: {error!s:.200}", mend="use a single file without external data"
        ) from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        reason = f"has {len(inputs)} inputs and {len(outputs)} outputs instead of one of each"
        raise CheckpointError(path, reason, mend=_WANTED)
    if inputs[0].type != "tensor(float)":
        raise CheckpointError(path, f"expects {inputs[0].type}", mend="export it in float32")
    shape = inputs[0].shape or ()
    _check_shape(path, tuple(size if isinstance(size, int) else None for size in shape), size_px)
    name = inputs[0].name

    def forward(batch: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {name: batch.cpu().numpy()})[0]))

    return forward


_LOADERS: dict[str, Callable[[Path, int, torch.device, bool], _Forward]] = {
    "torch.export": _load_exported,
    "onnx": _load_onnx,
    "torchscript": _load_torchscript,
}


def _check_shape(path: Path, shape: tuple[int | None, ...], size_px: int) -> None:
    """Compare the shape that a file states with (any batch, 3, size_px, size_px); None stands for any."""
    if len(shape) != 4 or shape[1] not in {3, None}:
        raise CheckpointError(path, f"expects {_text(shape)}, not (batch, 3, rows, columns)", mend=_WANTED)
    if shape[0] is not None:
        raise CheckpointError(path, f"accepts only batches of {shape[0]}", mend=_DYNAMIC)
    if any(size not in {size_px, None} for size in shape[2:]):
        raise CheckpointError(path, f"expects images of {_text(shape[2:])} px, not of {size_px}", mend="set its --size")


def _text(shape: tuple[int | None, ...]) -> str:
    return " x ".join("any" if size is None else str(size) for size in shape)


def _probed(path: Path, forward: _Forward, *, size_px: int, mean: _Three, std: _Three, device: torch.device) -> int:
    """The number of features of an encoder, after checking that it encodes every tile independently."""
    pixels = np.random.default_rng(0).integers(0, 256, (_PROBES, size_px, size_px, 3), np.uint8)

    def run(part: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            features = _encoded(forward, part, mean=mean, std=std, device=device)
        except PathologyError:
            raise
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # an unknown network may raise anything
            reason = f"fails on a batch of {len(part)} x 3 x {size_px} x {size_px}: {error!s:.200}"
            raise CheckpointError(path, reason, mend=f"set its --size, and {_DYNAMIC}") from error
        if features.ndim != 2 or len(features) != len(part) or not features.shape[1]:
            reason = f"returns {features.shape} for a batch of {len(part)}, not (batch, features)"
            raise CheckpointError(path, reason, mend="export it with its pooling and without other outputs")
        if not np.isfinite(features).all():
            raise CheckpointError(path, "returns NaN or infinity", mend="check its --mean and --std, and its weights")
        return features

    together, again = run(pixels), run(pixels)
    alone = np.concatenate([run(pixels[index : index + 1]) for index in range(_PROBES)])
    if device.type == "cpu" and not np.array_equal(together, again):
        raise CheckpointError(path, "returns different features every time", mend="export it after model.eval()")
    if alone.shape != together.shape or np.abs(alone - together).max() > _ROUNDING * np.abs(together).max():
        raise CheckpointError(
            path, "returns other features for a tile when its neighbours change", mend="export it after model.eval()"
        )
    return int(together.shape[1])


def _encoded(
    forward: _Forward, pixels: NDArray[np.uint8], *, mean: _Three, std: _Three, device: torch.device
) -> NDArray[np.float32]:
    with torch.inference_mode():
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float()
        centre = torch.tensor(mean, device=device).view(3, 1, 1)
        spread = torch.tensor(std, device=device).view(3, 1, 1)
        found = forward(((images / 255 - centre) / spread).contiguous())
        if not isinstance(found, torch.Tensor) or not found.is_floating_point():
            what = f"{found.dtype}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
            raise TypeError(f"it returns {what} instead of one tensor of floats")
        features: NDArray[np.float32] = found.float().cpu().numpy()
    return features
