"""Artefacts on disk: nothing exists until it is complete, and everything tells what it was made from.

A published artefact is a folder that holds DONE.json: its provenance and the sha256 of each of its files. The folder is
written under a hidden name beside its place and renamed once, so that a killed run leaves no half artefact behind.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wsi.errors import ArtefactError, PathologyError, StorageError

DONE = "DONE.json"


@contextmanager
def storage(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an operating system's refusal (disk full, stale handle) into a StorageError that names the path."""
    try:
        yield
    except PathologyError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            error.filename or path, f"cannot be written: {reason}", mend="free the disk or choose another output"
        ) from error


def atomic_bytes(path: Path, data: bytes) -> None:
    """Write a file that is either whole or absent.

    Raises:
        StorageError: the file system refuses.
    """
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with work.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)


def atomic_text(path: Path, text: str) -> None:
    """Write UTF-8 text that is either whole or absent."""
    atomic_bytes(path, text.encode())


def json_text(value: Any) -> str:  # noqa: ANN401  (whatever JSON can hold)
    """The one way JSON is written here: sorted keys, no NaN, a final newline, so that equal values give equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def digest_of(value: Any) -> str:  # noqa: ANN401  (whatever JSON can hold)
    """Hex sha256 of a value's JSON."""
    return hashlib.sha256(json_text(value).encode()).hexdigest()


@contextmanager
def publish(target: Path, provenance: Mapping[str, Any]) -> Iterator[Path]:
    """Give a hidden folder to write into; when the block ends well it becomes ``target``.

    Args:
        target: the artefact's folder; an older one is replaced in the same step.
        provenance: digests of the inputs and the configuration; stored in DONE.json.

    Raises:
        StorageError: the file system refuses. The hidden folder is removed.
    """
    work = target.with_name(f".{target.name}.work")
    with storage(target):
        _remove(work)
        work.mkdir(parents=True)
        try:
            yield work
            files = {str(file.relative_to(work)): _sha256(file) for file in _files(work)}
            (work / DONE).write_text(json_text({"provenance": dict(provenance), "files": files}))
            for file in _files(work):
                _fsync(file)
            old = target.with_name(f".{target.name}.old")
            _remove(old)
            if target.exists():
                target.rename(old)
            work.rename(target)
            _fsync(target.parent)
            _remove(old)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise


def provenance_of(target: Path) -> dict[str, Any] | None:
    """What a published artefact was made from, or None where there is no complete artefact."""
    try:
        record = json.loads((target / DONE).read_text())
        provenance: dict[str, Any] = record["provenance"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return provenance


def verify(target: Path) -> None:
    """Compare every file of a published artefact with its sha256.

    Raises:
        ArtefactError: incomplete, or a file is missing, changed or was added.
    """
    try:
        expected: dict[str, str] = json.loads((target / DONE).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(target, f"has no readable {DONE}", mend="make it again") from error
    found = {str(file.relative_to(target)): _sha256(file) for file in _files(target) if file.name != DONE}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ArtefactError(target / name, f"differs from its record in {DONE}", mend="remove the artefact")


def sweep(folder: Path) -> None:
    """Remove what killed runs left in a folder: hidden work folders and partial files."""
    if folder.is_dir():
        for pattern in (".*.work", ".*.old", ".*.partial"):
            for left in folder.glob(pattern):
                _remove(left)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
