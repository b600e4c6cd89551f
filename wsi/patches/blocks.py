"""Patches read a window at a time, the next one while the last is used."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi.patches.reading import PassPlan, PatchPlaces, SlidePool, read_places
from wsi.readers.base import BadTile, OnBadTile

MOST_PATCHES = 1024


class PatchPixels(Protocol):
    """Patches whose pixels are read when they are wanted, from any number of threads but one at a time."""

    @property
    def size_px(self) -> int:
        """Side of the patches."""
        ...

    def __len__(self) -> int: ...

    @property
    def bad_tiles(self) -> tuple[tuple[str, BadTile], ...]:
        """Tiles that were read as white because they could not be decoded, each with its slide, so far."""
        ...

    def plan(self) -> PassPlan:
        """Which patches are cheaply read together."""
        ...

    def read(self, indices: NDArray[np.int64], *, out: NDArray[np.uint8], workers: int) -> None:
        """Fill uint8 (n, side, side, 3) with some patches, on so many threads."""
        ...


class SlidePixels:
    """Patches straight from slides.

    Args:
        places: where they lie.
        most_slides: open at a time.
        on_bad_tile: as for ``Slide.open``.
    """

    def __init__(self, places: PatchPlaces, *, most_slides: int = 16, on_bad_tile: OnBadTile = "raise") -> None:
        self._places = places
        self._pool = SlidePool(most_slides, on_bad_tile)

    @property
    def size_px(self) -> int:
        """Side of the patches."""
        return self._places.size_px

    def __len__(self) -> int:
        return len(self._places)

    @property
    def bad_tiles(self) -> tuple[tuple[str, BadTile], ...]:
        """Tiles that were read as white, with ``on_bad_tile="white"``."""
        return self._pool.bad_tiles

    def close(self) -> None:
        """Give the slides back; they are opened again when they are wanted."""
        self._pool.close()

    def plan(self) -> PassPlan:
        """Clusters of patches that share tiles.

        Raises:
            SlideError: a slide cannot be opened.
        """
        return PassPlan.of(self._places, self._pool)

    def read(self, indices: NDArray[np.int64], *, out: NDArray[np.uint8], workers: int) -> None:
        """Fill ``out``; each tile is decoded once for neighbours in ``indices`` that are of one slide.

        Raises:
            SlideError: a slide cannot be opened.
            TileError: a tile cannot be decoded.
        """
        ends = np.flatnonzero(np.diff(self._places.slide[indices])) + 1
        for some, part in zip(np.split(indices, ends), np.split(out, ends), strict=True):
            read_places(self._places, some, self._pool, out=part, workers=workers)


class JoinedPixels:
    """Several sets of patches as one, in the given order; all of one size."""

    def __init__(self, parts: Iterable[PatchPixels]) -> None:
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    @property
    def size_px(self) -> int:
        """Side of the patches."""
        return self._parts[0].size_px

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def bad_tiles(self) -> tuple[tuple[str, BadTile], ...]:
        """Those of all parts."""
        return tuple(bad for part in self._parts for bad in part.bad_tiles)

    def plan(self) -> PassPlan:
        """The plans of all parts."""
        plans = [part.plan() for part in self._parts]
        first = np.cumsum([0, *(int(plan.slide_of.max(initial=-1)) + 1 for plan in plans)])
        return PassPlan(
            clusters=tuple(
                cluster + start
                for plan, start in zip(plans, self._starts.tolist(), strict=False)
                for cluster in plan.clusters
            ),
            slide_of=np.concatenate(
                [plan.slide_of + start for plan, start in zip(plans, first.tolist(), strict=False)]
            ).astype(np.int32),
            run=plans[0].run,
            window=plans[0].window,
        )

    def read(self, indices: NDArray[np.int64], *, out: NDArray[np.uint8], workers: int) -> None:
        """Fill ``out`` from the parts."""
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        ends = np.flatnonzero(np.diff(owner)) + 1
        for some, part in zip(np.split(indices, ends), np.split(out, ends), strict=True):
            if len(some):
                number = int(np.searchsorted(self._starts, some[0], side="right")) - 1
                self._parts[number].read(some - self._starts[number], out=part, workers=workers)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadWindow:
    """Patches that were read together; good until the next but one is asked for.

    Attributes:
        indices: int64 (n,), which patches, in the order that was asked for.
        pixels: uint8 (n, side, side, 3), in the order in which they were read.
        place: int64 (n,), which of ``pixels`` each of ``indices`` has.
    """

    indices: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    place: NDArray[np.int64]


class WindowReader:
    """Reads windows of patches ahead, into two buffers that are kept from pass to pass; pickles without them.

    Args:
        order: int (n,), where each patch stands in an order in which those that are cheaply read together do so, too.
    """

    def __init__(self, order: NDArray[np.integer]) -> None:
        self._order = order
        self._buffers: list[NDArray[np.uint8]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffers": []}

    def read(
        self, pixels: PatchPixels, windows: Iterable[NDArray[np.int64]], *, workers: int
    ) -> Generator[ReadWindow, None, None]:
        """Read windows on so many threads, one ahead of the one that is given out.

        Raises:
            PathologyError: patches cannot be read.
        """
        # Fresh memory costs half as much as the decoding.
        side = pixels.size_px
        buffers, self._buffers = self._buffers or [np.empty((0, side, side, 3), np.uint8) for _ in range(2)], []
        with ThreadPoolExecutor(1, "window") as ahead:
            reading: Future[ReadWindow] | None = None
            for number, window in enumerate(windows):
                if len(buffers[number % 2]) < len(window):
                    buffers[number % 2] = np.empty((len(window), side, side, 3), np.uint8)
                following = ahead.submit(self._read, pixels, window, buffers[number % 2][: len(window)], workers)
                if reading is not None:
                    yield reading.result()
                reading = following
            if reading is not None:
                yield reading.result()
        self._buffers = buffers

    def _read(self, pixels: PatchPixels, window: NDArray[np.int64], out: NDArray[np.uint8], workers: int) -> ReadWindow:
        by_tile = np.argsort(self._order[window], kind="stable")
        pixels.read(window[by_tile], out=out, workers=workers)
        place = np.empty(len(window), np.int64)
        place[by_tile] = np.arange(len(window))
        return ReadWindow(indices=window, pixels=out, place=place)


def window_of(size_px: int, budget: int) -> int:
    """How many patches of a side fit into so many bytes of pixels: 1 to 1,024."""
    return max(1, min(MOST_PATCHES, budget // (3 * size_px**2)))
