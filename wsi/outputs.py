"""What may be replaced: one rule for the outputs of every command, applied before any work.

An output that exists is refused. With ``overwrite`` a regular file is replaced if its content says that it is of the
same kind. Nothing else ever is: no folder, no link, no device, no file of another kind, no input, no part of an
artefact.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from wsi.errors import OutputExistsError, OutputNameError, StorageError
from wsi.inputs import open_regular
from wsi.store import DONE, HIDDEN_BYTES, kind_of

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".pdf")
"""Suffixes of pictures that can be written; none can be written as SVG, because all are drawn in pixels."""

TIFFS = (".tif", ".tiff", ".btf")
"""File names that readers recognise as TIFF."""

RECORDS = (DONE, "run.json", "features.json", "mil.json", "cross_validation.json", ".parts/made_from.json")
"""A folder with one of these is an artefact: no output goes into it, except by the command that made it."""

_KNOWN = frozenset({*PICTURES, *TIFFS}) | frozenset(
    [
        ".svg",
        ".csv",
        ".json",
        ".geojson",
        ".xml",
        ".html",
        ".safetensors",
        ".parquet",
        ".zarr",
        ".svs",
        ".ndpi",
        ".mrxs",
        ".scn",
        ".dcm",
        ".bif",
        ".zip",
        ".tar",
        ".h5",
        ".pt",
        ".pt2",
        ".pth",
        ".onnx",
        ".toml",
        ".txt",
        ".tsv",
        ".xlsx",
        ".xls",
        ".ods",
        ".docx",
    ]
)
_SOFTWARE = b"sentinode"
_HEAD = 2**16
_NAME_BYTES = 255  # of one name, on the file systems in use
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a Path keeps one of the slashes
_OTHER = "choose another output"


class OutputKind(Protocol):
    """What a command writes: a file, an artefact or a folder."""

    def refuse_name(self, path: Path) -> None:
        """Refuse a name that promises something else."""

    def refuse_others(self, path: Path, *, overwrite: bool) -> None:
        """Refuse what must not be replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """A single file.

    Attributes:
        name: what it is, with its article.
        suffixes: how its name ends.
        is_one: whether an existing file is one; it is given the open file.
        is_strict: no other suffix will do; otherwise only those of other kinds are refused.
    """

    name: str
    suffixes: tuple[str, ...]
    is_one: Callable[[BufferedReader], bool]
    is_strict: bool = False

    def refuse_name(self, path: Path) -> None:
        """Refuse a suffix that promises another kind of file.

        Raises:
            OutputNameError: it does.
        """
        refuse_suffix(path, self.suffixes, what=self.name, is_strict=self.is_strict)

    def refuse_others(self, path: Path, *, overwrite: bool) -> None:
        """Refuse whatever is at ``path``, unless it is a file of this kind, or empty, and may be replaced.

        Raises:
            OutputExistsError: it is refused; the message says what it is.
        """
        mode = _mode(path)
        if mode is None:
            return
        if not stat.S_ISREG(mode) or not self.is_at(path):
            raise OutputExistsError(path, f"is {what_is(path)}, not {self.name}, and is never replaced", mend=_OTHER)
        if not overwrite:
            raise OutputExistsError(path, f"exists: it is {self.name}", mend=f"{_OTHER}, or give --overwrite")

    def is_at(self, path: Path) -> bool:
        """Whether a regular file of this kind, or an empty one, is at ``path``."""
        try:
            with open_regular(path) as file:
                return os.fstat(file.fileno()).st_size == 0 or self.is_one(file)
        except (OSError, ValueError, struct.error):
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtefactKind:
    """A published folder.

    Attributes:
        kind: as its DONE.json says.
        suffixes: how its name ends.
        is_resumed: the command keeps one that was made from the same inputs, and itself refuses others.
    """

    kind: str
    suffixes: tuple[str, ...] = (".zarr",)
    is_resumed: bool = False

    def refuse_name(self, path: Path) -> None:
        """Refuse a suffix that promises another kind of file.

        Raises:
            OutputNameError: it does.
        """
        refuse_suffix(path, self.suffixes, what=f"a {self.kind}")

    def refuse_others(self, path: Path, *, overwrite: bool) -> None:
        """Refuse anything but an artefact of this kind that may be replaced.

        Raises:
            OutputExistsError: it is refused; the message says what it is.
        """
        if _mode(path) is None:
            return
        if path.is_symlink() or kind_of(path) != self.kind:
            raise OutputExistsError(path, f"is {what_is(path)}, not a {self.kind}, and is never replaced", mend=_OTHER)
        if not (overwrite or self.is_resumed):
            raise OutputExistsError(path, f"exists: it is a {self.kind}", mend=f"{_OTHER}, or give --overwrite")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderKind:
    """A folder into which files are written; what else it holds stays.

    Attributes:
        files: those that are written without any record of the inputs, by name.
        record: the file among RECORDS by which the command knows its own folder.
        sole: folders in it that are only the command's own where its files are.
    """

    files: Mapping[str, FileKind] = field(default_factory=dict)
    record: str | None = None
    sole: tuple[str, ...] = ()

    def refuse_name(self, path: Path) -> None:
        """Refuse a name that promises a file.

        Raises:
            OutputNameError: it does.
        """
        refuse_suffix(path, (), what="a folder")

    def refuse_others(self, path: Path, *, overwrite: bool) -> None:
        """Refuse anything but a folder, artefacts of other commands, and in the folder the files to be replaced.

        Raises:
            OutputExistsError: something else is there.
        """
        is_taken = any((path / record).is_file() for record in RECORDS if record != self.record)
        if is_taken or (_mode(path) is not None and not path.is_dir()):
            raise OutputExistsError(path, f"is {what_is(path)}, and is never replaced", mend=_OTHER)
        for name, kind in self.files.items():
            kind.refuse_others(path / name, overwrite=overwrite)
        strange = next((path / name for name in self.sole if _mode(path / name) is not None), None)
        if strange is not None and not all((path / name).is_file() for name in self.files):
            raise OutputExistsError(strange, f"is {what_is(strange)}, and is never replaced", mend=_OTHER)


def check_output(path: Path, kind: OutputKind, *, inputs: Collection[Path] = (), overwrite: bool = False) -> None:
    """Apply the rule to one output; nothing is touched.

    Args:
        path: where it is to be written.
        kind: what it is to be.
        inputs: whatever the command reads.
        overwrite: replace a file of the same kind.

    Raises:
        OutputNameError: its suffix promises another kind, it is a URL, or the name is too long.
        OutputExistsError: it is an input, is part of an artefact, or something that is not to be replaced is there.
        StorageError: its folder may not be written.
    """
    refuse_unusable(path)
    kind.refuse_name(path)
    keep_apart(path, inputs, is_folder=isinstance(kind, FolderKind))
    kind.refuse_others(path, overwrite=overwrite)
    _check_writable(path)


def refuse_unusable(path: Path) -> None:
    """Refuse what no file can be called.

    Raises:
        OutputNameError: it is a URL, or too long.
    """
    if _URL.match(str(path)):
        raise OutputNameError(path, "is a URL, and outputs are written to local folders", mend=_OTHER)
    *parents, name = [len(os.fsencode(part)) for part in path.absolute().parts]
    if name > _NAME_BYTES - HIDDEN_BYTES or max(parents, default=0) > _NAME_BYTES:
        raise OutputNameError(path, f"has a name of more than {_NAME_BYTES - HIDDEN_BYTES} bytes", mend="shorten it")


def _check_writable(path: Path) -> None:
    """Refuse before the work what could not be written after it: the nearest folder that exists decides.

    Raises:
        StorageError: it may not be written.
    """
    folder = path.absolute()
    while not folder.exists() or (folder == path.absolute() and not folder.is_dir()):
        folder = folder.parent
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        why = "may not be written" if folder.is_dir() else "is not a folder"
        raise StorageError(path, f"cannot be written: {folder} {why}", mend=_OTHER)


def keep_apart(output: Path, inputs: Collection[Path], *, is_folder: bool = False) -> None:
    """Refuse an output that is an input by any name, is part of an artefact, or as a folder contains an input folder.

    Raises:
        OutputExistsError: it does.
    """
    real = output.resolve()
    for one in inputs:
        if not one.exists():
            continue
        if output.exists() and output.samefile(one):
            raise OutputExistsError(output, "is an input and an output", mend=_OTHER)
        if one.is_dir():
            inside = one.resolve()
            # a heatmap is a folder, but counts as a file: nothing in it is touched
            if is_folder and inside.is_relative_to(real) and kind_of(inside) is None:
                raise OutputExistsError(output, f"contains the input {one}", mend=_OTHER)
            is_artefact = any((inside / record).is_file() for record in RECORDS)
            if real.is_relative_to(inside) and (is_artefact or (output.exists() and not is_folder)):
                raise OutputExistsError(output, f"is inside the input {one}", mend=_OTHER)
    sealed = next((folder for folder in real.parents if (folder / DONE).is_file()), None)
    # a run keeps its files in folders, the others keep theirs beside their record
    above = ((real.parent, RECORDS), (real.parent.parent, ("run.json", "made_from.json", "patches.parquet")))
    owner = next((one for one, records in above if any((one / record).is_file() for record in records)), None)
    if sealed is not None or (owner is not None and output.exists()):
        raise OutputExistsError(output, f"is part of {what_is(sealed or owner or real)}", mend=_OTHER)


def refuse_suffix(path: Path, suffixes: tuple[str, ...], *, what: str, is_strict: bool = False) -> None:
    """Refuse a name with the suffix of another kind of file, or with ``is_strict`` any but these.

    Raises:
        OutputNameError: it has one.
    """
    suffix = path.suffix.lower()
    if suffix in suffixes or not (is_strict or suffix in _KNOWN):
        return
    mend = f"end it in {' or '.join(suffixes)}" if suffixes else "leave the suffix out"
    raise OutputNameError(path, f"ends in {path.suffix or 'no suffix'}, but {what} is written", mend=mend)


def what_is(path: Path) -> str:
    """What is at a path, in a few words with the article."""
    mode = _mode(path)
    if mode is None:
        return "nothing"
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        is_output = any((path / record).is_file() for record in RECORDS if record != DONE)
        kind = "output" if is_output else kind_of(path)
        return "a folder" if kind is None else f"{'an' if kind == 'output' else 'a'} {kind} of sentinode"
    return "a file of another kind" if stat.S_ISREG(mode) else "not a regular file"


def begins(*magics: bytes) -> Callable[[BufferedReader], bool]:
    """A test of a file's first bytes."""
    return lambda file: file.read(_HEAD).removeprefix(b"\xef\xbb\xbf").startswith(magics)


def has(magic: bytes, *texts: bytes) -> Callable[[BufferedReader], bool]:
    """A test of how a file begins and of what is near its beginning."""

    def is_one(file: BufferedReader) -> bool:
        head = file.read(_HEAD)
        return head.startswith(magic) and any(text in head for text in texts)

    return is_one


def table(*columns: str, name: str = "a table") -> FileKind:
    """A CSV whose header begins with these columns."""
    header = ",".join(columns).encode()
    ends = tuple(header + end for end in (b",", b"\n", b"\r"))
    return FileKind(name=name, suffixes=(".csv",), is_one=begins(*ends))


def json_file(name: str, *texts: str) -> FileKind:
    """A JSON object with one of these texts near its beginning."""
    return FileKind(name=name, suffixes=(".json",), is_one=has(b"{", *(text.encode() for text in texts)))


def weights(name: str, form: str) -> FileKind:
    """Weights in safetensors whose metadata name this format."""

    def is_one(file: BufferedReader) -> bool:
        head = file.read(_HEAD)
        return head[8:9] == b"{" and form.encode() in head

    return FileKind(name=name, suffixes=(".safetensors",), is_one=is_one)


EIGHT_BIT_HEATMAP = "sentinode heatmap: probability 0 to 1 as 0 to 255"
"""The description in a heatmap of 8 bits, which tells it from a mask."""


def our_tiff(file: BufferedReader) -> str | None:
    """What kind of TIFF sentinode wrote: slide, mask, (8-bit) heatmap or picture; None if another program wrote it."""
    magic = file.read(4)
    if magic not in (b"II*\0", b"II+\0"):
        return None
    is_big = magic == b"II+\0"
    (link,) = struct.unpack("<4xQ" if is_big else "<I", file.read(12 if is_big else 4))
    file.seek(link)
    (count,) = struct.unpack("<Q" if is_big else "<H", file.read(8 if is_big else 2))
    entry = struct.Struct("<HHQQ" if is_big else "<HHII")
    tags = {tag: (size, value) for tag, _, size, value in entry.iter_unpack(file.read(entry.size * min(count, 256)))}
    size, offset = tags.get(305, (0, 0))  # Software
    file.seek(offset)
    if size != len(_SOFTWARE) + 1 or file.read(size) != _SOFTWARE + b"\0":
        return None
    if 322 not in tags:  # TileWidth
        return "picture"
    samples, form = (tags.get(tag, (1, 1))[1] & 0xFFFF for tag in (277, 339))  # SamplesPerPixel, SampleFormat
    if samples > 1 or form == 3:
        return "slide" if samples > 1 else "heatmap"
    size, offset = tags.get(270, (0, 0))  # ImageDescription
    file.seek(offset)
    is_heatmap = size == len(EIGHT_BIT_HEATMAP) + 1 and file.read(size) == EIGHT_BIT_HEATMAP.encode() + b"\0"
    return "8-bit heatmap" if is_heatmap else "mask"


def _is_our_pdf(file: BufferedReader) -> bool:
    """Whether a PDF names sentinode as its producer, which it does at its end."""
    head = file.read(5)
    file.seek(max(0, os.fstat(file.fileno()).st_size - _HEAD))
    return head == b"%PDF-" and _SOFTWARE.decode().encode("utf-16-be") in file.read()


def _tiff(kind: str) -> FileKind:
    return FileKind(
        name=f"a {kind} written by sentinode as TIFF",
        suffixes=TIFFS,
        is_one=lambda file: our_tiff(file) == kind,
        is_strict=True,
    )


SLIDE_TIFF, MASK_TIFF, HEATMAP_TIFF = _tiff("slide"), _tiff("mask"), _tiff("heatmap")
HEATMAP_TIFF8 = _tiff("8-bit heatmap")
_PICTURES = {
    ".png": ("a PNG written by sentinode", has(b"\x89PNG\r\n\x1a\n", _SOFTWARE)),
    ".jpg": ("a JPEG written by sentinode", has(b"\xff\xd8\xff", _SOFTWARE)),
    ".pdf": ("a PDF written by sentinode", _is_our_pdf),
    ".tif": ("a picture written by sentinode as TIFF", lambda file: our_tiff(file) == "picture"),
}
_SAME = {".jpeg": ".jpg", ".tiff": ".tif"}


def picture(path: Path, suffixes: tuple[str, ...] = PICTURES) -> FileKind:
    """The kind of picture that a path's suffix asks for; other suffixes than these are refused when it is checked."""
    suffix = path.suffix.lower()
    name, is_one = _PICTURES.get(_SAME.get(suffix, suffix), ("", lambda _: False))
    return FileKind(name=name if suffix in suffixes else "a picture", suffixes=suffixes, is_one=is_one, is_strict=True)


def refuse_twins(outputs: Collection[Path]) -> None:
    """Refuse two outputs of one name, and one inside another.

    Raises:
        OutputExistsError: two are the same, or one is inside another.
    """
    seen: set[Path] = set()
    for path in outputs:
        real = path.resolve()
        if real in seen:
            raise OutputExistsError(path, "is two outputs at once", mend="name two files")
        around = next((one for one in seen if real.is_relative_to(one) or one.is_relative_to(real)), None)
        if around is not None:
            raise OutputExistsError(path, f"and {around} are outputs, one inside the other", mend="name them apart")
        seen.add(real)


def _mode(path: Path) -> int | None:
    """The mode of what is at a path, links not followed; None if nothing is."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
