"""Artefacts on disk: nothing exists until it is complete, and everything records what it was made from.

A published artefact is a folder that holds DONE.json: its kind, its provenance, and size and sha256 of each file. The
folder is written under a hidden name beside its target and renamed once, so that a killed process leaves no half
artefact behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from wsi.errors import ArtefactError, OutputExistsError, OutputInUseError, PathologyError, StorageError
from wsi.inputs import read_json

DONE = "DONE.json"


def _machine() -> str:
    """Eight hex digits for where a process number means this process: the host and, in a container, its namespace."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        namespace = ""
    return f"{zlib.crc32(f'{socket.gethostname()} {namespace}'.encode()):08x}"


_HOST = _machine()
_UNFINISHED = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.(work|old|partial)", re.DOTALL
)
_MENDS = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free the disk or choose another output") | {
    errno.ENOENT: "make its folder first, or choose another output",
    errno.EISDIR: "name a file, or choose another output",
    errno.ENOTDIR: "name a folder, or choose another output",
}
_MOST_NAME_BYTES = 200  # HIDDEN_BYTES and a suffix fit in 255
HIDDEN_BYTES = 40
"""How many bytes the name of what is being written is longer than its final name, at most."""


@contextmanager
def storage(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError (disk full, stale handle) into a StorageError that names the path."""
    try:
        yield
    except PathologyError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        mend = _MENDS.get(error.errno or 0, "choose another output")
        # an unfinished file has a name that nobody knows
        is_work = isinstance(error.filename, str) and is_unfinished(Path(error.filename).name)
        named = path if is_work else error.filename or path
        raise StorageError(named, f"cannot be written: {reason}", mend=mend) from error


def check_target(path: Path) -> None:
    """Refuse to replace anything but a regular file: no folder, no link, no device.

    Raises:
        OutputExistsError: something else is there.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a symbolic link" if stat.S_ISLNK(mode) else "not a regular file"
        raise OutputExistsError(path, f"is {kind}, which is never replaced by a file", mend="choose another output")


def check_kept(paths: Iterable[Path]) -> None:
    """Check at the end that nothing which was written has been removed in the meantime.

    Raises:
        StorageError: a file or folder is not there.
    """
    for path in paths:
        if not path.exists():
            raise StorageError(path, "was removed while the output was being written", mend="start again")


def atomic_bytes(path: Path, data: bytes) -> None:
    """Write a file that is either whole or absent.

    Raises:
        OutputExistsError: a folder, a link or a device is there.
        StorageError: the file system refuses.
    """
    check_target(path)
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = unfinished_name(path, "partial")
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
    """The one JSON format used here: sorted keys, no NaN, a final newline, so that equal values yield equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def digest_of(value: Any) -> str:  # noqa: ANN401  (whatever JSON can hold)
    """Hex sha256 of a value's JSON."""
    return hashlib.sha256(json_text(value).encode()).hexdigest()


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its own digest, for ``read_sealed``."""
    return {**record, "digest": digest_of(dict(record))}


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a record that was ``sealed``, without the digest.

    Raises:
        OSError: it cannot be read.
        ArtefactError: it is malformed, or was changed.
    """
    try:
        record: dict[str, Any] = read_json(path)
        digest = record.pop("digest")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtefactError(path, "is malformed", mend="make it again") from error
    if digest != digest_of(record):
        raise ArtefactError(path, "was changed", mend="make it again")
    return record


def read_named(path: Path, key: str) -> dict[str, Any]:
    """Read the part ``key`` of a record that was ``sealed``, about the slide that its file is named after.

    Paths are made from the slide's name: a record of another name could lead anywhere.

    Raises:
        OSError: it cannot be read.
        ArtefactError: it is malformed, was changed, or is of another slide.
    """
    part = read_sealed(path).get(key)
    if not isinstance(part, dict) or part.get("slide") != path.stem:
        raise ArtefactError(path, "is not the record of the slide it is named after", mend="make it again")
    return part


@contextmanager
def publish(
    target: Path,
    provenance: Mapping[str, Any],
    *,
    kind: str,
    is_own: bool = False,
    since: tuple[int, int] | Literal["now"] | None = "now",
) -> Iterator[Path]:
    """Yield a hidden folder to write into; it becomes ``target`` when the block ends without an error.

    The hidden folder is this writer's own. If another writer has published in the meantime, this one was suspended and
    resumed: its result is discarded.

    Args:
        target: the artefact's folder; an older one of the same kind is replaced in the same step.
        provenance: digests of the inputs and the configuration; stored in DONE.json.
        kind: what the artefact is, in a word; stored too.
        is_own: the folder around ``target`` is this command's own, and so is any folder at ``target``, however damaged.
        since: the ``identity`` that ``target`` had before the work, if that began before this call.

    Raises:
        OutputExistsError: something other than an artefact of this kind is at ``target``. It is not touched.
        OutputInUseError: another writer has published something else there in the meantime.
        StorageError: the file system refuses. The hidden folder is removed.
    """
    before = _refuse_others(target, kind, is_own=is_own)
    before = before if since == "now" else since
    work = unfinished_name(target, "work")
    with storage(target):
        work.mkdir(parents=True)
        try:
            yield work
            files = {str(file.relative_to(work)): measured(file) for file in _files(work)}
            record = {"kind": kind, "provenance": dict(provenance), "files": files}
            (work / DONE).write_text(json_text(record))
            for file in _files(work):
                _fsync(file)
            if _refuse_others(target, kind, is_own=is_own) != before:
                if provenance_of(target) != dict(provenance):
                    raise OutputInUseError(
                        target, "was published by another writer in the meantime", mend="start again, one at a time"
                    )
                return
            old = work.with_suffix(".old")
            if target.exists():
                target.rename(old)
            work.rename(target)
            _fsync(target.parent)
            _remove(old)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def provenance_of(target: Path) -> dict[str, Any] | None:
    """What a published artefact was made from, or None if there is no complete artefact."""
    record = _done(target)
    return None if record is None else record["provenance"]


def kind_of(target: Path) -> str | None:
    """The kind of a published artefact, or None if there is no complete artefact."""
    record = _done(target)
    return None if record is None else record["kind"]


def verify(target: Path, *, digests: bool = True) -> None:
    """Compare every file of a published artefact with its size and, with ``digests``, its sha256.

    Files that are not part of the artefact (.DS_Store, Thumbs.db) are ignored.

    Raises:
        ArtefactError: incomplete, or a file is missing or changed.
    """
    record = _done(target)
    if record is None:
        raise ArtefactError(target, f"has no readable {DONE}", mend="make it again")
    for name, expected in sorted(record["files"].items()):
        reason = differs(target / name, expected, digests=digests)
        if reason is not None:
            raise ArtefactError(target / name, f"{reason} since {DONE} was written", mend="make the artefact again")


def name_fault(name: str) -> str | None:
    """Why artefacts cannot be named after a slide, or None; file names end at 255 bytes, and ours are longer."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "its name has characters that are not text"
    size = len(name.encode())
    return f"its name has {size} bytes, more than {_MOST_NAME_BYTES}" if size > _MOST_NAME_BYTES else None


def unfinished_name(path: Path, suffix: Literal["partial", "work"]) -> Path:
    """A name beside ``path`` for what is to become it: its machine and process, and a random number are in it."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.{suffix}")


def is_unfinished(name: str) -> bool:
    """Whether a name is one of unfinished_name."""
    return _UNFINISHED.fullmatch(name) is not None


def sweep(folder: Path, of: Callable[[str], bool] = lambda _: True) -> None:
    """Remove what killed processes left unfinished in a folder that this process alone writes to.

    Args:
        folder: need not exist.
        of: whether a name is one of those whose remains are to be removed.
    """
    if folder.is_dir():
        for left in folder.glob(".*"):
            found = _UNFINISHED.fullmatch(left.name)
            if found and of(found["name"]):
                _remove(left)


def sweep_beside(path: Path) -> None:
    """Remove what processes of this machine that are gone left unfinished of one file or artefact."""
    for left in path.parent.glob(f".{escape(path.name)}.*"):
        found = _UNFINISHED.fullmatch(left.name)
        if found and found["name"] == path.name and found["host"] == _HOST and not _is_alive(int(found["process"])):
            _remove(left)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; no process has such a number
        return True
    return True


def _done(target: Path) -> dict[str, Any] | None:
    """The content of DONE.json, None unless it is valid and names only files below its folder."""
    try:
        record = read_json(target / DONE)
        files = {PurePosixPath(name): (file["bytes"], file["sha256"]) for name, file in record["files"].items()}
        is_whole = isinstance(record["kind"], str) and isinstance(record["provenance"], dict)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    is_inside = not any(name.is_absolute() or ".." in name.parts for name in files)
    return record if is_whole and is_inside else None


def identity(target: Path) -> tuple[int, int] | None:
    """What distinguishes the artefact at ``target`` from a later one, None if nothing complete is there."""
    if _done(target) is None:
        return None
    state = (target / DONE).stat()
    return state.st_ino, state.st_mtime_ns


def _refuse_others(target: Path, kind: str, *, is_own: bool) -> tuple[int, int] | None:
    """An identity that distinguishes the artefact at ``target`` from a later one, None if nothing complete is there."""
    if not target.exists() and not target.is_symlink():
        return None
    found = None if target.is_symlink() else kind_of(target)
    if found is None and is_own and target.is_dir() and not target.is_symlink():
        return None
    if found != kind:
        raise OutputExistsError(target, f"exists but is not a {kind} of sentinode", mend="choose another output")
    return identity(target)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def measured(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, to be compared later by ``differs``.

    Raises:
        StorageError: it cannot be read.
    """
    with storage(path):
        return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def differs(path: Path, expected: Mapping[str, Any], *, digests: bool = True) -> str | None:
    """How a file differs from ``measured``, or None; without ``digests`` only sizes are compared."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != expected["bytes"]:
        return "has another size"
    return "was changed" if digests and _sha256(path) != expected["sha256"] else None


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
