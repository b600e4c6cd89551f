"""What a file of weights does not say about its encoder: the network, how tiles are prepared, whose it is.

Public encoders stand in ``known.toml``; any other of timm's kind is described by a TOML file with the same fields and
``weights``, the path of its file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from wsi.errors import CheckpointError
from wsi.inputs import read_text

Three = tuple[float, float, float]

_KNOWN = "known.toml"
_OF_RESNET = 2048
_CHOICES = {
    "network": ("vit", "resnet50"),
    "pooling": ("cls", "cls+mean"),
    "resampling": ("antialiased", "plain"),
    "commercial": ("yes", "no", "unknown"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """An encoder without its weights.

    Attributes:
        name: as it is called on the command line.
        network: vit, a plain vision transformer, or resnet50.
        mean, std: of red, green and blue; the encoder receives (value / 255 - mean) / std.
        mpp: um per px of the tiles.
        size_px: side of the tiles.
        pooling: what describes a tile, see ``wsi.cnn.encoders.vit``.
        resampling: how position embeddings reach another grid.
        epsilon: of the normalisations.
        heads: of the attention of a vision transformer, which needs it.
        patch_px, width, depth, registers: likewise; None where any will do.
        title, source, licence: for people.
        commercial: whether the licence allows commercial use: yes, no or unknown.
    """

    name: str
    network: Literal["vit", "resnet50"]
    mean: Three
    std: Three
    mpp: float
    size_px: int
    pooling: Literal["cls", "cls+mean"] = "cls"
    resampling: Literal["antialiased", "plain"] = "antialiased"
    epsilon: float = 1e-6
    heads: int | None = None
    patch_px: int | None = None
    width: int | None = None
    depth: int | None = None
    registers: int | None = None
    title: str = ""
    source: str = ""
    licence: str = ""
    commercial: Literal["yes", "no", "unknown"] = "unknown"

    @property
    def features(self) -> int | None:
        """Features per tile; None if the width is not described."""
        if self.network == "resnet50":
            return _OF_RESNET
        return None if self.width is None else self.width * (2 if self.pooling == "cls+mean" else 1)

    def to_json(self) -> dict[str, Any]:
        """What of it decides the features, beside the weights and the preparation of tiles."""
        if self.network == "resnet50":
            return {"network": self.network}
        return {
            "network": self.network,
            "pooling": self.pooling,
            "heads": self.heads,
            "epsilon": self.epsilon,
            "resampling": self.resampling,
        }


@cache
def known_encoders() -> dict[str, Description]:
    """The public encoders, by name."""
    text = resources.files("wsi.cnn.encoders").joinpath(_KNOWN).read_text(encoding="utf-8")
    return {name: _described(Path(_KNOWN), name, table) for name, table in tomllib.loads(text).items()}


def find_encoder(text: str) -> tuple[Path, Description | None]:
    """Read how an encoder is given: NAME=PATH of a known one, a TOML file, or a file that needs no description.

    Returns:
        The path of the weights or of the network, and the description of weights.

    Raises:
        CheckpointError: the name is not known, or the TOML file describes no encoder.
    """
    name, equals, path = text.partition("=")
    if equals and name and "/" not in name and not Path(text).exists():
        known = known_encoders().get(name.lower())
        if known is None:
            raise CheckpointError(
                Path(path), f"is given as {name[:40]!r}, which is no known encoder", mend="see sentinode encoders"
            )
        return Path(path).expanduser(), known
    if text.lower() in known_encoders() and not Path(text).exists():
        raise CheckpointError(
            None, f"{text} is an encoder without its weights", mend=f"write {text.lower()}=model.safetensors"
        )
    if text.lower().endswith(".toml"):
        return _from_file(Path(text).expanduser())
    return Path(text).expanduser(), None


def _from_file(path: Path) -> tuple[Path, Description]:
    try:
        table: dict[str, Any] = tomllib.loads(read_text(path))
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is no TOML file: {error!s:.200}") from error
    weights = table.pop("weights", None)
    if not isinstance(weights, str):
        raise CheckpointError(path, "names no file of weights", mend='write weights = "model.safetensors"')
    return path.parent / Path(weights).expanduser(), _described(path, path.stem, table)


def _described(path: Path, name: str, table: Mapping[str, Any]) -> Description:
    of_name = {field.name: field for field in fields(Description) if field.name != "name"}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in of_name:
            raise CheckpointError(path, f"has the unknown field {key[:40]!r}", mend=f"use {', '.join(of_name)}")
        values[key] = _checked(path, key, value, of_name[key].type)
    missing = [key for key, field in of_name.items() if field.default is MISSING and key not in values]
    if values.get("network") == "vit" and "heads" not in values:
        missing.append("heads")
    if missing:
        raise CheckpointError(path, f"lacks {', '.join(missing)}", mend="see wsi/cnn/encoders/known.toml")
    return Description(name=name, **values)


def _checked(path: Path, key: str, value: object, kind: object) -> object:
    """The value of a field.

    Raises:
        CheckpointError: it is none.
    """
    number = _is_number(value)
    if key in _CHOICES:
        if value in _CHOICES[key]:
            return value
        wanted = " or ".join(_CHOICES[key])
    elif key in ("mean", "std"):
        low = 0.0 if key == "std" else float("-inf")
        if isinstance(value, list) and len(value) == 3 and all(_is_number(one) and low < one for one in value):
            return tuple(map(float, value))
        wanted = "three numbers" + (" above 0" if key == "std" else "")
    elif str(kind).startswith("int"):
        if number and int(value) == value and value > (-1 if key == "registers" else 0):  # type: ignore[call-overload, operator]
            return int(value)  # type: ignore[call-overload]
        wanted = "a whole number"
    elif kind == "float":
        if number and 0 < value < float("inf"):  # type: ignore[operator]
            return float(value)  # type: ignore[arg-type]
        wanted = "a number above 0"
    elif isinstance(value, str):
        return value
    else:
        wanted = "a text"
    raise CheckpointError(path, f"is {str(value)[:40]!r}, and should be {wanted}", where=key)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
