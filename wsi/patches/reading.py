"""Many equal patches of many slides: where they lie, their pixels, and an order in which no tile is decoded twice.

A pass goes in windows. The patches of a window are read slide by slide, each tile once for all of them, and given out
in random order. What goes into one window together are runs: patches of one slide that share tiles.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Level, z_order
from wsi.readers.base import BadTile, OnBadTile
from wsi.resample import AxisPlan, average, plan_axis
from wsi.slide import Slide

_GRID = 1 << 20  # positions are rounded to so many parts of a source pixel, as in wsi.resample
_SOURCE_BYTES = 128 * 2**20  # source pixels held at a time where patches are averaged from a finer level


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchPlaces:
    """Where patches lie, without any pixels.

    Attributes:
        slides: paths or URLs.
        slide: int (n,), which of ``slides`` each patch is of.
        x, y: float64 (n,), level-0 px of the outer corner of pixel (0, 0).
        downsample: float64 (n,), level-0 px per patch px.
        size_px: side of every patch.
    """

    slides: tuple[str, ...]
    slide: NDArray[np.int32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    downsample: NDArray[np.float64]
    size_px: int

    def __post_init__(self) -> None:
        if not self.slide.shape == self.x.shape == self.y.shape == self.downsample.shape or self.slide.ndim != 1:
            raise ValueError("patches need a slide, an x, a y and a downsample each")
        if self.size_px < 1:
            raise ValueError(f"a patch needs at least 1 px, got {self.size_px}")
        if self.slide.size and not 0 <= self.slide.min() <= self.slide.max() < len(self.slides):
            raise ValueError(f"patches name slides that are not among the {len(self.slides)}")

    def __len__(self) -> int:
        return len(self.slide)


@dataclass(slots=True, eq=False)
class SlidePool:
    """Open slides, the least recently used given back when there are more than ``most``; pickles without them.

    Attributes:
        most: slides that are open at a time.
        on_bad_tile: as for ``Slide.open``.
    """

    most: int = 16
    on_bad_tile: OnBadTile = "raise"
    _open: OrderedDict[str, Slide] = field(default_factory=OrderedDict, repr=False)
    _bad: set[tuple[str, BadTile]] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"at least one slide must be open at a time, got {self.most}")

    def __len__(self) -> int:
        return len(self._open)

    def get(self, path: str | Path) -> Slide:
        """The slide at a path, good until ``most`` others were asked for.

        Raises:
            SlideError: it cannot be opened.
        """
        key = fspath(path)
        found = self._open.pop(key, None)
        self._open[key] = Slide.open(key, on_bad_tile=self.on_bad_tile) if found is None else found
        while len(self._open) > self.most:
            self._give_back(last=False)
        return self._open[key]

    @property
    def bad_tiles(self) -> tuple[tuple[str, BadTile], ...]:
        """Tiles that could not be decoded and were read as white, each with its slide's path, so far."""
        still = {(path, tile) for path, slide in self._open.items() for tile in slide.bad_tiles}
        return tuple(sorted(self._bad | still))

    def close(self) -> None:
        """Give all slides back."""
        while self._open:
            self._give_back(last=True)

    def _give_back(self, *, last: bool) -> None:
        path, slide = self._open.popitem(last=last)
        self._bad.update((path, tile) for tile in slide.bad_tiles)
        slide.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return SlidePool, (self.most, self.on_bad_tile)


def level_for(slide: Slide, downsample: float) -> Level:
    """The stored level that ``Slide.read_frame`` takes pixels of this downsample from."""
    fitting = [level for level in slide.levels if level.downsample <= downsample * (1 + 1e-6)]
    return fitting[-1] if fitting else slide.levels[0]


def source_windows(
    slide: Slide, x: NDArray[np.float64], y: NDArray[np.float64], *, downsample: float, size_px: int
) -> tuple[Level, NDArray[np.int64]]:
    """Which stored pixels patches are made of.

    Returns:
        The level, and int64 (n, 4): row, column, height and width in px of the level.
    """
    level = level_for(slide, downsample)
    ratio = downsample / level.downsample
    rows, heights = _extents(y / level.downsample, ratio, size_px)
    columns, widths = _extents(x / level.downsample, ratio, size_px)
    return level, np.stack([rows, columns, heights, widths], axis=1)


def read_patches(
    slide: Slide,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    downsample: float,
    size_px: int,
    out: NDArray[np.uint8] | None = None,
    workers: int | None = None,
) -> NDArray[np.uint8]:
    """Pixels of many patches of one slide, each bit for bit as ``Slide.read_frame`` gives it.

    Each tile is decoded once for all patches; where they are averaged from a finer level, once for all that fit into
    128 MiB of source pixels.

    Args:
        slide: the slide.
        x: float64 (n,), level-0 px of the outer corners of the patches.
        y: the same.
        downsample: level-0 px per patch px.
        size_px: side of the patches.
        out: uint8 (n, size_px, size_px, 3) to be filled in place of a new array.
        workers: threads that decode; all usable cores by default.

    Raises:
        TileError: a tile cannot be decoded.
    """
    if out is None:
        out = np.empty((len(x), size_px, size_px, 3), dtype=np.uint8)
    if not len(x):
        return out
    level, windows = source_windows(slide, x, y, downsample=downsample, size_px=size_px)
    height, width = (int(side) for side in windows[:, 2:].max(axis=0))
    first_rows, first_columns = windows[:, 0], windows[:, 1]
    if _is_stored(level, x, y, downsample):
        return slide.read_windows(
            level.index, rows=first_rows, columns=first_columns, height=height, width=width, out=out, workers=workers
        )
    order = _curve(level, windows)
    share = max(1, _SOURCE_BYTES // (height * width * 3))
    source = np.empty((min(share, len(order)), height, width, 3), dtype=np.uint8)
    for start in range(0, len(order), share):
        some = order[start : start + share]
        pixels = slide.read_windows(
            level.index,
            rows=first_rows[some],
            columns=first_columns[some],
            height=height,
            width=width,
            out=source[: len(some)],
            workers=workers,
        )
        for at, window in zip(some.tolist(), pixels, strict=True):
            rows, columns = _plans(level, float(x[at]), float(y[at]), downsample, size_px)
            used = window[: rows.stop - rows.start, : columns.stop - columns.start]
            out[at] = average(np.ascontiguousarray(used), rows=rows, columns=columns)
    return out


def read_places(
    places: PatchPlaces,
    indices: NDArray[np.int64],
    pool: SlidePool,
    *,
    out: NDArray[np.uint8] | None = None,
    workers: int | None = None,
) -> NDArray[np.uint8]:
    """Pixels of some patches of many slides, in the order of ``indices``; each slide is opened once.

    Args:
        places: all patches.
        indices: int (n,), which of them.
        pool: where slides are opened.
        out: uint8 (n, size_px, size_px, 3) to be filled in place of a new array.
        workers: threads that decode.

    Raises:
        SlideError: a slide cannot be opened.
        TileError: a tile cannot be decoded.
    """
    side = places.size_px
    if out is None:
        out = np.empty((len(indices), side, side, 3), dtype=np.uint8)
    for slide, downsample, members in _groups(places, indices):
        chosen = indices[members]
        whole = len(members) == len(indices)
        pixels = read_patches(
            pool.get(places.slides[slide]),
            places.x[chosen],
            places.y[chosen],
            downsample=downsample,
            size_px=side,
            out=out if whole else None,
            workers=workers,
        )
        if not whole:
            out[members] = pixels
    return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassPlan:
    """How passes over many patches go.

    Patches of a slide that are connected by common tiles form a cluster. A run holds whole clusters of one slide, drawn
    anew for every pass, until it has ``run`` patches; larger clusters are cut along a Z-curve into pieces of ``run``.
    Runs are shuffled over all slides, ``window`` patches of them are read at a time and given out in random order. A
    tile is decoded once per window; over a pass more than once only where a cluster was cut, or where the end of a
    window or of a worker's part falls into it.

    Attributes:
        clusters: indices of patches, int64, in runs that share tiles.
        slide_of: int (clusters,), of which slide each is.
        run: patches of a run, at least where the slide has as many.
        window: patches read at a time.
    """

    clusters: tuple[NDArray[np.int64], ...]
    slide_of: NDArray[np.int32]
    run: int
    window: int

    @classmethod
    def of(cls, places: PatchPlaces, pool: SlidePool, *, run: int = 64, window: int = 1024) -> PassPlan:
        """Look at the tiles of every slide; nothing is decoded.

        Raises:
            SlideError: a slide cannot be opened.
        """
        if run < 1 or window < 1:
            raise ValueError(f"runs and windows hold at least one patch, got {run}, {window}")
        clusters: list[NDArray[np.int64]] = []
        slide_of: list[int] = []
        for slide, downsample, members in _groups(places, np.arange(len(places))):
            found = _clusters(pool.get(places.slides[slide]), places, members, downsample)
            for cluster in found:
                clusters += [cluster[start : start + run] for start in range(0, len(cluster), run)]
            slide_of += [slide] * (len(clusters) - len(slide_of))
        return cls(clusters=tuple(clusters), slide_of=np.array(slide_of, np.int32), run=run, window=window)

    @property
    def count(self) -> int:
        """Patches of a pass."""
        return sum(len(cluster) for cluster in self.clusters)

    def part(self, *, number: int, parts: int, even: bool) -> tuple[int, int]:
        """First and last + 1 of a pass's patches, in its order, that belong to one of several workers.

        With ``even`` all have the same number, and up to ``parts - 1`` patches are left out, others in every pass.
        """
        if not 0 <= number < parts:
            raise ValueError(f"part {number} of {parts} does not exist")
        if even:
            share = self.count // parts
            return number * share, (number + 1) * share
        return number * self.count // parts, (number + 1) * self.count // parts

    def windows(
        self, *, seed: int, epoch: int, number: int = 0, parts: int = 1, even: bool = False, shuffle: bool = True
    ) -> Iterator[NDArray[np.int64]]:
        """Indices of the patches of one pass, a window at a time, in the order in which they are given out.

        All parts of one pass together hold every patch once (see ``part``), on any number of processes.
        """
        start, stop = self.part(number=number, parts=parts, even=even)
        rng = np.random.default_rng([seed, epoch])
        order = self._order(rng) if shuffle else np.sort(np.concatenate([np.empty(0, np.int64), *self.clusters]))
        order = order[start:stop]
        own = np.random.default_rng([seed, epoch, number + 1])
        for first in range(0, len(order), self.window):
            window = order[first : first + self.window]
            yield own.permutation(window) if shuffle else window

    def _order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        runs: list[list[NDArray[np.int64]]] = []
        held, slide = 0, -1
        for at in np.lexsort((rng.random(len(self.clusters)), self.slide_of)).tolist():
            if self.slide_of[at] != slide or held >= self.run:
                runs.append([])
                held, slide = 0, int(self.slide_of[at])
            runs[-1].append(self.clusters[at])
            held += len(self.clusters[at])
        parts = [cluster for at in rng.permutation(len(runs)).tolist() for cluster in runs[at]]
        return np.concatenate([np.empty(0, np.int64), *parts])


def _groups(places: PatchPlaces, indices: NDArray[np.int64]) -> Iterator[tuple[int, float, NDArray[np.int64]]]:
    """(slide, downsample, which of ``indices``) of patches that can be read together."""
    slides, downsamples = places.slide[indices], places.downsample[indices]
    order = np.lexsort((downsamples, slides))
    if not order.size:
        return
    changes = (np.diff(slides[order]) != 0) | (np.diff(downsamples[order]) != 0)
    for members in np.split(order, np.flatnonzero(changes) + 1):
        yield int(slides[members[0]]), float(downsamples[members[0]]), members


def _clusters(
    slide: Slide, places: PatchPlaces, members: NDArray[np.int64], downsample: float
) -> list[NDArray[np.int64]]:
    """Patches in groups that share no tile with another group, each group in tile order."""
    from scipy.sparse import coo_array  # noqa: PLC0415  (slow import)
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    level, windows = source_windows(
        slide, places.x[members], places.y[members], downsample=downsample, size_px=places.size_px
    )
    patch, tile = _uses(level, windows)
    count = len(members)
    size = count + (int(tile.max()) + 1 if tile.size else 0)
    graph = coo_array((np.ones(len(patch), np.int8), (patch, count + tile)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    curve = _curve(level, windows)
    by_cluster = curve[np.argsort(labels[:count][curve], kind="stable")]
    ends = np.flatnonzero(np.diff(labels[:count][by_cluster])) + 1
    return [members[some] for some in np.split(by_cluster, ends)]


def _curve(level: Level, windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order of windows in which those of neighbouring tiles stand near each other."""
    middle = windows[:, :2] + windows[:, 2:] // 2
    return z_order(middle[:, 0] // level.tile_height, middle[:, 1] // level.tile_width)


def _uses(level: Level, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(window, tile) for every tile that a window touches; tiles are numbered from 0 without gaps."""
    top, left = np.maximum(windows[:, 0], 0), np.maximum(windows[:, 1], 0)
    bottom = np.minimum(windows[:, 0] + windows[:, 2], level.height)
    right = np.minimum(windows[:, 1] + windows[:, 3], level.width)
    inside = np.flatnonzero((top < bottom) & (left < right))
    across = -(-level.width // level.tile_width)
    window, key = [], []
    for at in inside.tolist():
        rows = np.arange(top[at] // level.tile_height, (bottom[at] - 1) // level.tile_height + 1)
        columns = np.arange(left[at] // level.tile_width, (right[at] - 1) // level.tile_width + 1)
        keys = (rows[:, None] * across + columns).ravel()
        key.append(keys)
        window.append(np.full(len(keys), at))
    if not key:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    _, numbers = np.unique(np.concatenate(key), return_inverse=True)
    return np.concatenate(window), numbers.astype(np.int64)


def _plans(level: Level, x: float, y: float, downsample: float, size_px: int) -> tuple[AxisPlan, AxisPlan]:
    """Rows and columns as ``Slide.read_frame`` plans them."""
    ratio = downsample / level.downsample
    return (
        plan_axis(origin=y / level.downsample, ratio=ratio, count=size_px),
        plan_axis(origin=x / level.downsample, ratio=ratio, count=size_px),
    )


def _extents(origin: NDArray[np.float64], ratio: float, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First source pixel and number of source pixels of many axes at once, as ``wsi.resample.plan_axis`` plans each."""
    step = float(round(ratio)) if _is_whole(ratio) else ratio
    first, before, last = (np.rint((origin + at * step) * _GRID).astype(np.int64) for at in (0, count - 1, count))
    start = first // _GRID
    return start, -(-np.maximum(last, before + 1) // _GRID) - start


def _is_whole(ratio: float) -> bool:
    return round(ratio) >= 1 and abs(ratio - round(ratio)) <= 1e-13 * round(ratio)


def _is_stored(level: Level, x: NDArray[np.float64], y: NDArray[np.float64], downsample: float) -> bool:
    """Whether patches are pixels of a level as they are."""
    ratio = downsample / level.downsample
    corners = np.rint(np.concatenate([x, y]) / level.downsample * _GRID).astype(np.int64)
    return _is_whole(ratio) and round(ratio) == 1 and not (corners % _GRID).any()
