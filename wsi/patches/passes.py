"""The order of a pass over many patches, in which hardly any tile is decoded twice.

A pass goes in blocks. The patches of a block are read slide by slide, each tile once for all of them, and yielded in
random order. A block consists of stretches: patches of one slide that share tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.patches.pool import SlidePool
from wsi.patches.reading import PatchPositions, by_slide, source_windows
from wsi.slide import Slide


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassPlan:
    """How passes over many patches are ordered.

    Patches of a slide that are connected by common tiles form a cluster. A stretch holds whole clusters of one slide,
    drawn anew for every pass, until it has ``stretch`` patches; larger clusters are cut along a Z-curve into pieces
    of ``stretch``. Stretches are shuffled over all slides; ``block`` patches of them are read at a time and yielded in
    random order. A tile is decoded once per block, and more than once in a pass only if its cluster was cut, or if the
    end of a block or of a worker's part falls into it.

    Attributes:
        clusters: indices of patches, int64, in stretches that share tiles.
        slide_of: int (clusters,), the slide of each.
        stretch: least patches of a stretch, if the slide has as many.
        block: patches read at a time.
    """

    clusters: tuple[NDArray[np.int64], ...]
    slide_of: NDArray[np.int32]
    stretch: int
    block: int

    @classmethod
    def of(cls, positions: PatchPositions, pool: SlidePool, *, stretch: int = 64, block: int = 1024) -> PassPlan:
        """Plan by the tile grid of every slide; nothing is decoded.

        Raises:
            SlideError: a slide cannot be opened.
        """
        if stretch < 1 or block < 1:
            raise ValueError(f"stretches and blocks must hold at least one patch, got {stretch}, {block}")
        clusters: list[NDArray[np.int64]] = []
        slide_of: list[int] = []
        for slide, downsample, members in by_slide(positions, np.arange(len(positions))):
            found = _clusters(pool.get(positions.slides[slide]), positions, members, downsample)
            for cluster in found:
                clusters += [cluster[start : start + stretch] for start in range(0, len(cluster), stretch)]
            slide_of += [slide] * (len(clusters) - len(slide_of))
        return cls(clusters=tuple(clusters), slide_of=np.array(slide_of, np.int32), stretch=stretch, block=block)

    @property
    def count(self) -> int:
        """Patches of a pass."""
        return sum(len(cluster) for cluster in self.clusters)

    def part(self, *, number: int, parts: int, even: bool) -> tuple[int, int]:
        """First and last + 1 of a pass's patches, in its order, for one of several workers.

        With ``even`` all have the same number, and up to ``parts - 1`` patches are left out, others in every pass.
        """
        if not 0 <= number < parts:
            raise ValueError(f"part {number} of {parts} does not exist")
        if even:
            share = self.count // parts
            return number * share, (number + 1) * share
        return number * self.count // parts, (number + 1) * self.count // parts

    def blocks(
        self, *, seed: int, epoch: int, number: int = 0, parts: int = 1, even: bool = False, shuffle: bool = True
    ) -> Iterator[NDArray[np.int64]]:
        """Indices of the patches of one pass, a block at a time, in the order in which they are yielded.

        All parts of one pass together hold every patch once (see ``part``), on any number of processes.
        """
        start, stop = self.part(number=number, parts=parts, even=even)
        rng = np.random.default_rng([seed, epoch])
        order = self._order(rng) if shuffle else np.sort(np.concatenate([np.empty(0, np.int64), *self.clusters]))
        order = order[start:stop]
        own = np.random.default_rng([seed, epoch, number + 1])
        for first in range(0, len(order), self.block):
            block = order[first : first + self.block]
            yield own.permutation(block) if shuffle else block

    def _order(self, rng: np.random.Generator) -> NDArray[np.int64]:
        stretches: list[list[NDArray[np.int64]]] = []
        held, slide = 0, -1
        for at in np.lexsort((rng.random(len(self.clusters)), self.slide_of)).tolist():
            if self.slide_of[at] != slide or held >= self.stretch:
                stretches.append([])
                held, slide = 0, int(self.slide_of[at])
            stretches[-1].append(self.clusters[at])
            held += len(self.clusters[at])
        parts = [cluster for at in rng.permutation(len(stretches)).tolist() for cluster in stretches[at]]
        return np.concatenate([np.empty(0, np.int64), *parts])


def _clusters(
    slide: Slide, positions: PatchPositions, members: NDArray[np.int64], downsample: float
) -> list[NDArray[np.int64]]:
    """Patches in groups that share no tile with another group, each group in tile order."""
    from scipy.sparse import coo_array  # noqa: PLC0415  (slow import)
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    level, windows = source_windows(
        slide, positions.x[members], positions.y[members], downsample=downsample, size_px=positions.size_px
    )
    patch, rows, columns = windows.tiles(level.shape, level.tile_shape)
    touched, tile = np.unique(rows * -(-level.width // level.tile_width) + columns, return_inverse=True)
    count = len(members)
    size = count + len(touched)
    graph = coo_array((np.ones(len(patch), np.int8), (patch, count + tile)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    curve = windows.tile_order(level.tile_shape)
    by_cluster = curve[np.argsort(labels[:count][curve], kind="stable")]
    ends = np.flatnonzero(np.diff(labels[:count][by_cluster])) + 1
    return [members[group] for group in np.split(by_cluster, ends)]
