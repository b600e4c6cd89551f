"""Slides in object stores and on web servers, read by range requests (the extra ``cloud``).

Credentials and endpoints come from the environment as for any S3 client (AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT_URL ...); public buckets, such as CAMELYON's, need AWS_SKIP_SIGNATURE=true.
"""

from __future__ import annotations

import base64
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from datetime import timedelta
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

from wsi.errors import SlideError, SlideNotFoundError

SCHEMES = ("s3", "gs", "az", "http", "https")
"""Supported URL schemes."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_BLOCK_BYTES = 2**18  # directories are many small adjacent reads: one request covers them all
_BLOCKS = 32
_PATIENCE_S = 60.0
_FEWEST_CHARACTERS = 4  # of a secret that is looked for in messages
_STATUS = re.compile(r"\b[45]\d\d [A-Z][A-Za-z -]{2,40}")
_JOIN_BYTES = 2**18  # tiles with a smaller gap share a request: a round trip takes longer than these bytes


class RemoteSource:
    """An object behind a URL; see ``wsi.readers.source.ByteSource``. Safe from many threads.

    Args:
        url: of the object.

    Raises:
        SlideNotFoundError: there is no such object.
        SlideError: the scheme is unknown, the extra is not installed, or the server refuses.
    """

    def __init__(self, url: str) -> None:
        _check_secrets(url)
        self.name = url
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = Lock()
        parts = urlsplit(url)
        if parts.scheme.lower() not in SCHEMES:
            raise SlideError(url, f"has the scheme {parts.scheme!r}", mend=f"use one of {', '.join(SCHEMES)}")
        self._remote = _import_obstore(url)
        self._key = unquote(parts.path.lstrip("/"))
        self._secrets = _secrets(url)
        try:
            self._store = _open_store(url, patience=_PATIENCE_S)
            self.size = self._size(_open_store(url, patience=0))
        except FileNotFoundError as error:
            raise SlideNotFoundError(url, "there is no such object", mend="check the URL") from error
        except Exception as error:
            raise SlideError(url, f"cannot be reached: {self._said(error)}", mend=_mend(parts.scheme)) from error

    def _size(self, store: Any) -> int:  # noqa: ANN401
        """What the server says of the object's size; one that refuses HEAD says it with the first bytes."""
        try:
            return int(self._remote.head(store, self._key)["size"])
        except Exception as error:
            # a refusal of HEAD alone comes as one of the object, or as none such
            if not isinstance(error, FileNotFoundError) and _STATUS.search(str(error)) is None:
                raise
        return int(self._remote.get(store, self._key, options={"range": (0, 16)}).meta["size"])

    def read(self, offset: int, count: int) -> bytes:
        """See ``ByteSource``; small reads are served from blocks of 256 KiB."""
        first, last = offset // _BLOCK_BYTES, (offset + max(count, 1) - 1) // _BLOCK_BYTES
        if last - first > 1:
            return self._get(offset, count)
        data = b"".join(self._block(number) for number in range(first, last + 1))
        start = offset - first * _BLOCK_BYTES
        return data[start : start + count]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See ``ByteSource``; ranges less than 256 KiB apart share a request."""
        if not ranges:
            return []
        starts = [offset for offset, _ in ranges]
        lengths = [count for _, count in ranges]
        try:
            found = self._remote.get_ranges(
                self._store, self._key, starts=starts, lengths=lengths, coalesce=_JOIN_BYTES
            )
        except Exception as error:
            raise self._unreadable(error) from error
        return [bytes(part) for part in found]

    def close(self) -> None:
        """See ``ByteSource``."""
        with self._lock:
            self._blocks.clear()

    def _block(self, number: int) -> bytes:
        with self._lock:
            block = self._blocks.get(number)
        if block is None:
            start = number * _BLOCK_BYTES
            block = self._get(start, min(_BLOCK_BYTES, self.size - start))
            with self._lock:
                self._blocks[number] = block
                while len(self._blocks) > _BLOCKS:
                    self._blocks.popitem(last=False)
        return block

    def _get(self, offset: int, count: int) -> bytes:
        if count <= 0:
            return b""
        try:
            return bytes(self._remote.get_range(self._store, self._key, start=offset, length=count))
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> OSError:
        # obstore's errors are not OSErrors, which readers of a source expect
        return OSError(self._said(error))

    def _said(self, error: Exception) -> str:
        """What went wrong: of a server's answer its status alone, as pages of errors repeat what was asked."""
        status = _STATUS.search(str(error))
        if status is not None:
            return f"the server answers {status[0].strip()}"
        lines = str(error).strip().splitlines()
        text = lines[0][:300] if lines else type(error).__name__
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text


_first_process: list[int] = []


def _import_obstore(url: str) -> Any:  # noqa: ANN401  (a module that may not be there)
    try:
        import obstore  # noqa: PLC0415  (slow import of an extra)
    except ImportError as error:
        raise SlideError(url, "reading remote slides needs obstore", mend="pip install 'sentinode[cloud]'") from error
    # obstore's threads do not survive a fork: a child would wait for them forever.
    if not _first_process:
        _first_process.append(os.getpid())
    if _first_process[0] != os.getpid():
        raise SlideError(
            url,
            "remote slides cannot be read in a forked process once its parent has read one",
            mend="start workers with the method spawn or forkserver",
        )
    return obstore


def _open_store(url: str, *, patience: float) -> Any:  # noqa: ANN401
    """The store of a URL; a request that fails is repeated within ``patience`` s, and one without answer lasts 30."""
    from obstore.store import from_url  # noqa: PLC0415  (slow import of an extra)

    parts = urlsplit(url)
    connect: Any = from_url  # its overloads, one per kind of store, do not accept a URL of any kind
    retries = {"max_retries": 4 if patience else 1, "retry_timeout": timedelta(seconds=patience)}
    endpoints = (os.environ.get(name, "") for name in _ENDPOINTS)
    is_plain = any(where.lower().startswith("http://") for where in (url, *endpoints))
    options: dict[str, Any] = {"allow_http": True} if is_plain else {}
    host, query = parts.netloc, ""
    if parts.scheme.lower() in ("http", "https"):
        user, has_user, host = parts.netloc.rpartition("@")
        if has_user:
            login = base64.b64encode(unquote(user).encode()).decode("ascii")
            options["default_headers"] = {"Authorization": f"Basic {login}"}
        query = f"/?{parts.query}" if parts.query else ""  # signed URLs: sent with every request
    return connect(f"{parts.scheme}://{host}{query}", client_options=options, retry_config=retries)


def _mend(scheme: str) -> str:
    if scheme.lower() == "s3" and "AWS_ACCESS_KEY_ID" not in os.environ:
        return "check the URL; for a public bucket set AWS_SKIP_SIGNATURE=true, for others AWS_ACCESS_KEY_ID"
    return "check the URL, the network and the credentials"


def _check_secrets(url: str) -> None:
    """Refuse a URL of which it is not clear where its user, password or query ends: they must never be shown.

    Raises:
        SlideError: it is one; its text is not repeated.
    """
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    has_blank = ("@" in rest or "?" in rest) and any(one.isspace() for one in url)
    has_slash = (
        scheme.lower() in ("http", "https") and "@" in path.partition("?")[0] and "@" not in host and ":" in host
    )
    if has_blank or has_slash or host.partition("?")[0].count("@") > 1:
        raise SlideError(
            f"{scheme}://…",
            "has a blank, or an @ or / within its user or password",
            mend="write a blank as %20, @ as %40 and / as %2F; of a path, too",
        )


def _secrets(url: str) -> list[str]:
    """What of a URL must not be shown: the longest first."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    login = base64.b64encode(unquote(user).encode()).decode("ascii") if user else ""
    values = [value for _, _, value in (one.partition("=") for one in parts.query.split("&"))]
    found = {user, unquote(user), login, parts.query, *values, *map(unquote, values), *user.split(":", 1)}
    return sorted((one for one in found if len(one) >= _FEWEST_CHARACTERS), key=len, reverse=True)
