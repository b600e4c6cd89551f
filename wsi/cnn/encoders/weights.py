"""Weights of public encoders from files, brought to timm's names. Nothing in a file is run.

Names are those of timm's ``vision_transformer``, of DINOv2's own program, and of transformers' ``ViTModel``,
``Dinov2Model`` and ``Dinov2WithRegistersModel``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from wsi.errors import CheckpointError, plain
from wsi.inputs import open_regular

NAMES = ("model.safetensors", "pytorch_model.bin")
"""Of the file in a folder as downloaded from Hugging Face."""

_WRAPPERS = ("teacher", "state_dict", "model")
_PREFIXES = ("module.", "backbone.", "dinov2_with_registers.", "dinov2.", "vit.", "model.")
_UNUSED = re.compile(
    r"embeddings\.mask_token|mask_token"  # of the training
    r"|pooler\.dense\.(weight|bias)"
    r"|(dino|ibot)_head\..*|classifier\.(weight|bias)|head\.(weight|bias)"
)
_RENAMED = (
    # DINOv2's own
    (r"register_tokens", "reg_token"),
    (r"blocks\.\d+\.(\d+)\.(.*)", r"blocks.\1.\2"),  # in chunks, as its training keeps them
    (r"(blocks\.\d+\.mlp)\.w12\.(.*)", r"\1.fc1.\2"),
    (r"(blocks\.\d+\.mlp)\.w3\.(.*)", r"\1.fc2.\2"),
    # transformers
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
    (r"(?:encoder\.layer|layers)\.(\d+)\.(.*)", r"blocks.\1.\2"),
    (r"(blocks\.\d+)\.layernorm_before\.(.*)", r"\1.norm1.\2"),
    (r"(blocks\.\d+)\.layernorm_after\.(.*)", r"\1.norm2.\2"),
    (r"(blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.(.*)", r"\1.attn.proj.\2"),
    (r"(blocks\.\d+)\.intermediate\.dense\.(.*)", r"\1.mlp.fc1.\2"),
    (r"(blocks\.\d+)\.output\.dense\.(.*)", r"\1.mlp.fc2.\2"),
    (r"(blocks\.\d+)\.mlp\.weights_in\.(.*)", r"\1.mlp.fc1.\2"),
    (r"(blocks\.\d+)\.mlp\.(?:weights_out|down_proj)\.(.*)", r"\1.mlp.fc2.\2"),
    (r"(blocks\.\d+)\.layer_scale([12])\.lambda1", r"\1.ls\2.gamma"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
)
# of which one of timm's weights is put together, in this order
_PARTS = {
    "attn.qkv": ("query", "key", "value"),
    "mlp.fc1": ("gate_proj", "up_proj"),
}
_PART = re.compile(
    r"(blocks\.\d+)\.(?:attention\.attention\.|attention\.|mlp\.)"
    r"(query|key|value|q_proj|k_proj|v_proj|gate_proj|up_proj)\.(weight|bias)"
)
_SHORT = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}


def find_weights(path: Path) -> Path:
    """The file of weights: itself, or the one in a folder as downloaded.

    Raises:
        CheckpointError: there is none.
    """
    if not path.is_dir():
        return path
    found = next((path / name for name in NAMES if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(path, f"holds neither {' nor '.join(NAMES)}", mend="name the file of the weights")
    return found


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file by the names they have there.

    Args:
        path: safetensors, or what torch.save wrote of tensors alone.

    Raises:
        CheckpointError: it cannot be read, holds anything but tensors, or could run code.
    """
    try:
        with open_regular(path) as file:
            start = file.read(9)
        if start[8:9] == b"{":
            return safetensors.torch.load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(path, "there is no such file", mend="check the path of the weights") from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    except Exception as error:  # of damaged bytes the unpickler raises anything
        reason = f"is no file of weights alone: {plain(str(error)):.200}"
        raise CheckpointError(path, reason, mend="take model.safetensors") from error
    while isinstance(found, Mapping) and len(inner := [name for name in _WRAPPERS if name in found]) == 1:
        found = found[inner[0]]
    if not isinstance(found, Mapping) or not all(isinstance(one, torch.Tensor) for one in found.values()):
        raise CheckpointError(path, "holds more than named tensors", mend="save the state_dict of the network alone")
    return {str(name): tensor for name, tensor in found.items()}


def timm_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring the names of a vision transformer's weights to timm's; what only training uses is left out.

    Raises:
        ValueError: two weights get one name, or queries, keys and values are not complete.
    """
    prefix = _common_prefix(weights)
    found: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for given, tensor in weights.items():
        name = given.removeprefix(prefix)
        if _UNUSED.fullmatch(name):
            continue
        for before, after in _RENAMED:
            name = re.sub(f"^{before}$", after, name)
        part = _PART.fullmatch(name)
        if part is not None:
            piece = _SHORT.get(part[2], part[2])
            whole = next(one for one, pieces in _PARTS.items() if piece in pieces)
            parts.setdefault(f"{part[1]}.{whole}.{part[3]}", {})[piece] = tensor
            continue
        if name in found:
            raise ValueError(f"{given} and another weight are both {name}")
        found[name] = tensor
    for name, pieces in parts.items():
        order = _PARTS[".".join(name.split(".")[2:4])]
        if name in found or len(pieces) != len(order):
            raise ValueError(f"{name} is there twice, or only as {' and '.join(sorted(pieces))}")
        if len({tuple(one.shape) for one in pieces.values()}) != 1:
            raise ValueError(f"{name} is there in parts of different shapes")
        found[name] = torch.cat([pieces[one] for one in order])
    return found


def _common_prefix(weights: Mapping[str, torch.Tensor]) -> str:
    """What stands before the names of a network that was part of another: most names begin with it."""
    prefix = ""
    while True:
        more = next(
            (one for one in _PREFIXES if sum(name.startswith(prefix + one) for name in weights) * 2 > len(weights)),
            None,
        )
        if more is None:
            return prefix
        prefix += more
