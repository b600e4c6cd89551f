"""A slide's level as a lazy Dask array of whole tiles."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame, Level, Window
from wsi.raster import Image

if TYPE_CHECKING:
    import dask.array

TILES_PER_CHUNK = 8
"""Tiles along each side of a chunk: with 64 tiles a task's overhead, 2 ms between processes, is under 5 % of theirs."""

_OPEN_SLIDES = 8


class SlideSource(Protocol):
    """What a lazy array needs of a Slide; it pickles as the call that reopens it."""

    @property
    def levels(self) -> tuple[Level, ...]: ...

    def read_window(self, level: int, window: Window) -> NDArray[np.uint8]: ...

    def read_frame(self, frame: Frame) -> Image: ...

    def __reduce__(self) -> tuple[Any, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a slide is reopened: its path and options, which tasks carry instead of it.

    Attributes:
        make: returns the slide, not opened yet.
        arguments: of ``make``, the path first.
    """

    make: Callable[..., SlideSource]
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, slide: SlideSource) -> Recipe:
        """The recipe of a slide, open or not."""
        make, arguments = slide.__reduce__()
        return cls(make=make, arguments=arguments)

    def opened(self) -> SlideSource:
        """The slide, kept open by this process for later tasks; never a handle inherited from its parent."""
        return _opened(self, os.getpid(), _stamp(self.arguments[0]))


def level_to_dask(slide: SlideSource, level: int, *, tiles_per_chunk: int) -> dask.array.Array:
    """One stored level, uint8 (rows, columns, 3); nothing is read before a chunk is computed.

    A chunk's task carries only the slide's path and options. Each process opens the slide once, however many tasks it
    gets.

    Args:
        slide: open or not.
        level: index.
        tiles_per_chunk: along each side of a chunk.

    Raises:
        ValueError: tiles_per_chunk < 1.
    """
    import dask.array as da  # noqa: PLC0415  (slow import)

    if tiles_per_chunk < 1:
        raise ValueError(f"a chunk needs at least one tile, got {tiles_per_chunk}")
    size = slide.levels[level]
    chunks = (
        _cut(size.height, size.tile_height * tiles_per_chunk),
        _cut(size.width, size.tile_width * tiles_per_chunk),
        (3,),
    )
    join: Any = da  # Dask's array functions are untyped
    lazy: dask.array.Array = join.map_blocks(
        _read_chunk,
        recipe=Recipe.of(slide),
        level=level,
        chunks=chunks,
        dtype=np.uint8,
        meta=np.empty((0, 0, 0), "u1"),
    )
    return lazy


def _cut(length: int, step: int) -> tuple[int, ...]:
    return tuple(min(step, length - start) for start in range(0, length, step))


def _read_chunk(
    recipe: Recipe,
    level: int,
    block_info: Any = None,  # noqa: ANN401
) -> NDArray[np.uint8]:
    (top, bottom), (left, right), _ = block_info[None]["array-location"]
    return recipe.opened().read_window(level, Window.between(row=top, column=left, bottom=bottom, right=right))


@lru_cache(maxsize=_OPEN_SLIDES)
def _opened(recipe: Recipe, _process: int, _stamp: tuple[int, int]) -> SlideSource:
    return recipe.make(*recipe.arguments)


def _stamp(location: str | os.PathLike[str]) -> tuple[int, int]:
    """Changes when the file at a path is replaced, so that a long-lived worker does not read the old one."""
    try:
        found = Path(location).stat()
    except OSError:  # a URL, or a file that is gone: opening it will report that
        return 0, 0
    return found.st_mtime_ns, found.st_size
