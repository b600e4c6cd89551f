"""One writer per output directory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from wsi.errors import OutputExistsError, OutputInUseError, StorageError
from wsi.store import storage

_BEAT_S = 15.0
_STALE_S = 120.0


class OutputLock:
    """Holds an output directory for this process: flock on one machine, a lease with a heartbeat between machines.

    Another host's lease counts as held if its file was touched in the last two minutes, because flock does not work
    across machines on every network file system.

    Raises (on entry):
        OutputInUseError: another process holds the directory.
        OutputExistsError: the lock file is a link, not a regular file, or holds something else.
        StorageError: the directory cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / ".lock"
        self._handle: int | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        with storage(self._path):
            self._folder.mkdir(parents=True, exist_ok=True)
            handle = self._open()
            try:
                self._claim(handle)
            except BaseException:
                os.close(handle)
                raise
        self._handle = handle
        threading.Thread(target=self._beat, args=(handle,), daemon=True, name="output-lease").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None

    def check(self) -> None:
        """Check that the directory is still the one that is held.

        Raises:
            StorageError: it was removed or replaced.
        """
        if self._handle is None:
            return
        try:
            there, held = self._path.lstat(), os.fstat(self._handle)
        except OSError as error:
            raise self._lost() from error
        if (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
            raise self._lost()

    def _lost(self) -> StorageError:
        return StorageError(self._folder, "was removed or replaced while being written", mend="start again")

    def _open(self) -> int:
        """Open the lock file, never through a link, and only a regular file."""
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise self._no_lock() from error
            raise
        if not self._is_lock(handle):
            os.close(handle)
            raise self._no_lock()
        return handle

    def _is_lock(self, handle: int) -> bool:
        """Whether a file may be emptied: it is of one name, and empty or holds what a lock does."""
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
            return False
        return not state.st_size or self._holder(handle).keys() == {"host", "pid"}

    def _no_lock(self) -> OutputExistsError:
        return OutputExistsError(self._path, "is not a lock of sentinode", mend="remove it, or choose another output")

    def _claim(self, handle: int) -> None:
        holder = self._holder(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(holder) from None
        elsewhere = holder.get("host") not in (None, socket.gethostname())
        if elsewhere and time.time() - os.fstat(handle).st_mtime < _STALE_S:
            raise self._in_use(holder)
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)

    def _holder(self, handle: int) -> dict[str, object]:
        try:
            found = json.loads(os.pread(handle, 4096, 0))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _in_use(self, holder: dict[str, object]) -> OutputInUseError:
        who = f"process {holder.get('pid', '?')} on {holder.get('host', 'this machine')}"
        return OutputInUseError(self._folder, f"is in use by {who}", mend="wait for it, or choose another output")

    def _beat(self, handle: int) -> None:
        while not self._ended.wait(_BEAT_S):
            try:
                os.utime(handle)
            except OSError:
                return
