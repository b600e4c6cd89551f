"""Patches read a block at a time, each while the previous one is used."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi.patches.passes import PassPlan
from wsi.patches.pool import SlidePool
from wsi.patches.reading import PatchPositions, read_positions
from wsi.readers.base import BadTile, OnBadTile

MOST_PATCHES = 1024


class PatchPixels(Protocol):
    """Patches whose pixels are read on demand, from any number of threads but one at a time."""

    @property
    def size_px(self) -> int:
        """Side of the patches."""
        ...

    def __len__(self) -> int: ...

    @property
    def bad_tiles(self) -> tuple[tuple[str, BadTile], ...]:
        """Tiles read as white so far because they could not be decoded, each with its slide."""
        ...

    def plan(self) -> PassPlan:
        """Plan which patches are cheap to read together."""
        ...

    def read(self, indices: NDArray[np.int64], *, out: NDArray[np.uint8], workers: int) -> None:
        """Fill uint8 (n, side, side, 3) with the patches at ``indices``, on ``workers`` threads."""
        ...


class SlidePixels:
    """Patches straight from slides.

    Args:
        positions: of the patches.
        most_slides: open at a time.
        on_bad_tile: as for ``Slide.open``.
    """

    def __init__(self, positions: PatchPositions, *, most_slides: int = 16, on_bad_tile: OnBadTile = "raise") -> None:
        self._positions = positions
        self._pool = SlidePool(most_slides, on_bad_tile)

    @property
    def size_px(self) -> int:
        """Side of the patches."""
        return self._positions.size_px

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def bad_tiles(self) -> tuple[tuple[str, BadTile], ...]:
        """Tiles that were read as white, with ``on_bad_tile="white"``."""
        return self._pool.bad_tiles

    def close(self) -> None:
        """Close the slides; they are reopened when needed."""
        self._pool.close()

    def plan(self) -> PassPlan:
        """Clusters of patches that share tiles.

        Raises:
            SlideError: a slide cannot be opened.
        """
        return PassPlan.of(self._positions, self._pool)

    def read(self, indices: NDArray[np.int64], *, out: NDArray[np.uint8], workers: int) -> None:
        """Fill ``out``; each tile is decoded once for consecutive ``indices`` of one slide.

        Raises:
            SlideError: a slide cannot be opened.
            TileError: a tile cannot be decoded.
        """
        ends = np.flatnonzero(np.diff(self._positions.slide[indices])) + 1
        for chosen, part in zip(np.split(indices, ends), np.split(out, ends), strict=True):
            read_positions(self._positions, chosen, self._pool, out=part, workers=workers)


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
            stretch=plans[0].stretch,
            block=plans[0].block,
        )

    def read(self, indices: NDArray[np.int64], *, out: NDArray[np.uint8], workers: int) -> None:
        """Fill ``out`` from the parts."""
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        ends = np.flatnonzero(np.diff(owner)) + 1
        for chosen, part in zip(np.split(indices, ends), np.split(out, ends), strict=True):
            if len(chosen):
                number = int(np.searchsorted(self._starts, chosen[0], side="right")) - 1
                self._parts[number].read(chosen - self._starts[number], out=part, workers=workers)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadBlock:
    """Patches that were read together; valid until the next but one is requested.

    Attributes:
        indices: int64 (n,), of the patches, in the requested order.
        pixels: uint8 (n, side, side, 3), in the order in which they were read.
        order: int64 (n,), where in ``pixels`` each of ``indices`` is.
    """

    indices: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    order: NDArray[np.int64]


class BlockReader:
    """Reads blocks of patches ahead, into two buffers that are kept from pass to pass; pickles without them.

    Args:
        order: int (n,), the rank of each patch in an order that keeps patches together that are cheap to read together.
    """

    def __init__(self, order: NDArray[np.integer]) -> None:
        self._order = order
        self._buffers: list[NDArray[np.uint8]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_buffers": []}

    def read(
        self, pixels: PatchPixels, blocks: Iterable[NDArray[np.int64]], *, workers: int
    ) -> Generator[ReadBlock, None, None]:
        """Read blocks on ``workers`` threads, one ahead of the one yielded.

        Raises:
            PathologyError: patches cannot be read.
        """
        # Allocating fresh memory costs half as much as decoding.
        side = pixels.size_px
        buffers, self._buffers = self._buffers or [np.empty((0, side, side, 3), np.uint8) for _ in range(2)], []
        with ThreadPoolExecutor(1, "block") as ahead:
            reading: Future[ReadBlock] | None = None
            for number, block in enumerate(blocks):
                if len(buffers[number % 2]) < len(block):
                    buffers[number % 2] = np.empty((len(block), side, side, 3), np.uint8)
                following = ahead.submit(self._read, pixels, block, buffers[number % 2][: len(block)], workers)
                if reading is not None:
                    yield reading.result()
                reading = following
            if reading is not None:
                yield reading.result()
        self._buffers = buffers

    def _read(self, pixels: PatchPixels, block: NDArray[np.int64], out: NDArray[np.uint8], workers: int) -> ReadBlock:
        by_tile = np.argsort(self._order[block], kind="stable")
        pixels.read(block[by_tile], out=out, workers=workers)
        order = np.empty(len(block), np.int64)
        order[by_tile] = np.arange(len(block))
        return ReadBlock(indices=block, pixels=out, order=order)


def block_of(size_px: int, budget: int) -> int:
    """The number of patches whose pixels fit into ``budget`` bytes: 1 to 1,024."""
    return max(1, min(MOST_PATCHES, budget // (3 * size_px**2)))
