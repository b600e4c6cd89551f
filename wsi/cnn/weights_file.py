"""Weights on disk: a safetensors file with one JSON text of ours that describes them. Pickle is never read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from wsi.errors import CheckpointError
from wsi.inputs import open_regular

_KEY = "sentinode"
_DIGEST = "sha256"
_LARGEST_HEADER = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """One kind of file, and the wording of its errors.

    Attributes:
        format: its name in the metadata.
        fields: the exact fields of the metadata by version, "format" and "version" among them.
        largest_gib: larger files are not read.
        given_as: the user's word for it, "model".
        owner: what the weights belong to, "the architecture".
        another: the mend if another file is needed.
    """

    format: str
    fields: Mapping[int, frozenset[str]]
    largest_gib: int
    given_as: str
    owner: str
    another: str

    def to_bytes(self, meta: Mapping[str, Any], weights: Mapping[str, NDArray[Any]]) -> bytes:
        """The file's content: equal metadata and weights yield equal bytes.

        Args:
            meta: the fields of its version except "format", which is added.
            weights: by name.

        Raises:
            ValueError, TypeError: the metadata cannot be written as JSON.
        """
        # one metadata entry only: safetensors writes several in no fixed order
        said = {"format": self.format} | dict(meta)
        text = _text(said | {_DIGEST: _digest(said, weights)})
        return safetensors.numpy.save(dict(weights), metadata={_KEY: text})

    def read(self, path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Read metadata and weights; nothing in the file is ever executed, no size it claims is allocated unchecked.

        Raises:
            CheckpointError: there is no such file, it is of another kind (a pickle or .pt is named as such), or it is
                damaged.
        """
        data = self._bytes(path)
        meta, digest = self._meta(path, self._header(path, data))
        try:
            weights = safetensors.numpy.load(data)
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(path, f"is a damaged safetensors file: {error}", mend=self.another) from error
        if digest is not None and digest != _digest(meta, weights):
            raise CheckpointError(path, "is damaged: its content is not what was written", mend="copy the file again")
        return meta, weights

    def check_shapes(
        self, path: Path | None, expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, NDArray[Any]]
    ) -> None:
        """Compare names, shapes and types (float32) of weights with the expected ones.

        Raises:
            CheckpointError: they differ.
        """
        for name in sorted(expected.keys() | weights.keys()):
            where = f"tensor {name:.80}"
            if name not in weights:
                raise CheckpointError(path, "is missing", where=where, mend=self.another)
            if name not in expected:
                raise CheckpointError(path, f"does not belong to {self.owner}", where=where, mend=self.another)
            found = weights[name]
            if found.shape != expected[name] or found.dtype != np.float32:
                reason = f"is {found.dtype} {found.shape}, {self.owner} needs float32 {expected[name]}"
                raise CheckpointError(path, reason, where=where, mend=self.another)

    def _bytes(self, path: Path) -> bytes:
        try:
            with open_regular(path) as file:
                start = file.read(16)
                self._check_start(path, start, path.stat().st_size)
                return start + file.read(self.largest_gib << 30)
        except FileNotFoundError as error:
            mend = f"check the path given as the {self.given_as}"
            raise CheckpointError(path, "there is no such file", mend=mend) from error
        except OSError as error:
            raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error

    def _check_start(self, path: Path, start: bytes, size: int) -> None:
        """Refuse anything but a safetensors file by its first 16 bytes, naming what is commonly mistaken for one."""
        length = int.from_bytes(start[:8], "little")
        if start[8:9] == b"{" and length <= _LARGEST_HEADER:
            if length > size - 8:
                raise CheckpointError(path, "is cut off within its header", mend="copy the file again")
            if size > self.largest_gib << 30:
                raise CheckpointError(path, f"is larger than {self.largest_gib} GiB", mend=self.another)
            return
        kinds = (
            (b"PK\x03\x04", "is a zip archive (a PyTorch .pt or .pth holds pickled code): it was not opened"),
            (b"\x80", "is a Python pickle, which runs code when loaded: it was not opened"),
            (b"\x89HDF", "is an HDF5 file"),
            (b"\x1f\x8b", "is a gzip file"),
        )
        claim = f"claims a header of {length} bytes" if start[8:9] == b"{" else "is not a safetensors file"
        what = next((what for magic, what in kinds if start.startswith(magic)), claim)
        raise CheckpointError(path, what, mend=self.another)

    def _header(self, path: Path, data: bytes) -> dict[str, Any]:
        """The JSON before the tensors."""
        header = self._parse(path, data[8 : 8 + int.from_bytes(data[:8], "little")], "header")
        if not isinstance(header, dict):
            raise CheckpointError(path, "has a header that is not a JSON object", mend=self.another)
        return header

    def _meta(self, path: Path, header: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Our own metadata, with exactly the fields of its version, and the digest; files of 0.1.0 have none."""
        entries = header.get("__metadata__")
        text = entries.get(_KEY) if isinstance(entries, dict) else None
        if not isinstance(text, str):
            raise CheckpointError(path, "is a safetensors file of another program", mend=self.another)
        meta = self._parse(path, text.encode(errors="replace"), "metadata")
        if not isinstance(meta, dict) or meta.get("format") != self.format:
            raise CheckpointError(path, f"its metadata is not a {self.format}'s", mend=self.another)
        if not isinstance(meta.get(_DIGEST, ""), str):
            raise CheckpointError(path, f"its {_DIGEST} is no text: it was changed", mend=self.another)
        digest = meta.pop(_DIGEST, None)
        version = meta.get("version")
        if type(version) is not int or version not in self.fields:
            first, last = min(self.fields), max(self.fields)
            known = f"version {last}" if first == last else f"versions {first} to {last}"
            reason = f"has version {version!r:.20}, this program reads {known}"
            raise CheckpointError(path, reason, mend="use the program that wrote it")
        if set(meta) != self.fields[version]:
            differing = ", ".join(sorted(set(meta) ^ self.fields[version]))
            raise CheckpointError(
                path, f"its metadata has missing or extra fields: {differing:.200}", mend=self.another
            )
        return meta, digest

    def _parse(self, path: Path, text: bytes, what: str) -> Any:  # noqa: ANN401  (whatever the file holds)
        def refuse(name: str) -> NoReturn:
            raise ValueError(f"{name} is not a number")

        try:
            return json.loads(text, parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(path, f"its {what} is not JSON: {error}", mend=self.another) from error


def _text(meta: Mapping[str, Any]) -> str:
    return json.dumps(meta, sort_keys=True, allow_nan=False, separators=(",", ":"))


def _digest(meta: Mapping[str, Any], weights: Mapping[str, NDArray[Any]]) -> str:
    """Hex sha256 of the metadata and of all weights by name, with their types and shapes."""
    digest = hashlib.sha256(_text(meta).encode())
    for name, values in sorted(weights.items()):
        digest.update(f"\n{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def check_finite(path: Path | None, weights: Mapping[str, NDArray[Any]]) -> None:
    """Refuse weights that are not finite.

    Raises:
        CheckpointError: a weight is NaN or infinite.
    """
    for name, values in weights.items():
        if not np.isfinite(values).all():
            raise CheckpointError(path, "holds NaN or infinity", where=f"tensor {name}", mend="train again")
