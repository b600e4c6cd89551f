"""Slides that killed their process: found by the mark that a dead process leaves, and retried alone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from wsi.store import storage

Item = TypeVar("Item")
Result = TypeVar("Result")
_SUFFIX = ".attempt"


def mark_path(folder: Path, slide: str) -> Path:
    """Return the file that exists while a slide is being worked on."""
    return folder / f".{slide}{_SUFFIX}"


@contextmanager
def marked(folder: Path, slide: str) -> Iterator[None]:
    """Keep a mark while a slide is being worked on; it is left behind if the process dies.

    Raises:
        StorageError: the mark cannot be written.
    """
    path = mark_path(folder, slide)
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def tried_alone(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result | BaseException]]:
    """Work on each item in a fresh process; a process that dies yields a MemoryError, and the next item follows.

    Args:
        work: a picklable top-level function that returns errors instead of raising them.
        items: picklable.
    """
    context = multiprocessing.get_context("spawn")
    for item in items:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            try:
                yield item, pool.submit(work, item).result()
            except BrokenProcessPool:
                yield item, MemoryError("its process died, even when retried alone: out of memory, or a crash")
