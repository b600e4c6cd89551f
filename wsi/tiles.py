"""Which windows of a slide are looked at, and reading them in parallel with their consumer.

A TilePlan is pure: the slide's frame at one resolution is cut into equal square cores, those that touch the mask are
kept, and each is read with a halo around it so that the results of neighbouring windows fit together.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame, TileGrid, Window
from wsi.lazy import Recipe, SlideSource
from wsi.raster import Image, Mask
from wsi.threads import map_in_order
from wsi.tissue import covers

if TYPE_CHECKING:
    import dask.array

_AHEAD = 3  # windows per worker that are read or being read, beyond the consumer's one


class FrameSource(Protocol):
    """What reading a plan needs of a Slide."""

    def read_frame(self, frame: Frame) -> Image: ...
    def is_missing(self, frame: Frame) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TileWindow:
    """One window of a plan.

    Attributes:
        row, column: of the core in the grid of cores.
        frame: what is read: the core and its halo, always the same size; may extend beyond the slide (read as white).
        core: the core in the array of the plan's frame, clipped at its edge.
        inner: the core in the window's array.
    """

    row: int
    column: int
    frame: Frame
    core: Window
    inner: Window


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePlan:
    """The windows of a frame to read, row by row.

    Attributes:
        frame: the whole slide at the resolution of the windows.
        core_px: side of a core in px of the frame; cores lie side by side from the frame's top left corner.
        halo_px: px read around each core.
        cores: (row, column) of each kept core in the grid of cores, in ascending order.
    """

    frame: Frame
    core_px: int
    halo_px: int
    cores: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if self.core_px < 1 or self.halo_px < 0:
            raise ValueError(f"a plan needs core_px >= 1 and halo_px >= 0, got {self.core_px}, {self.halo_px}")

    @classmethod
    def over(cls, frame: Frame, *, core_px: int, halo_px: int = 0, mask: Mask | None = None) -> TilePlan:
        """Plan the cores of a frame that touch a mask.

        Args:
            frame: the whole slide at the resolution of the windows.
            core_px: side of a core.
            halo_px: px read around each core.
            mask: in any frame of the same slide, mapped by position; a core is kept if any true pixel of the mask
                overlaps it. None keeps all.

        Raises:
            ValueError: core_px < 1 or halo_px < 0.
        """
        if core_px < 1:
            raise ValueError(f"a plan needs core_px >= 1, got {core_px}")
        grid = frame.coarser(core_px)
        kept = np.ones(grid.shape, np.bool_) if mask is None else covers(mask, grid)
        cores = tuple((int(row), int(column)) for row, column in np.argwhere(kept))
        return cls(frame=frame, core_px=core_px, halo_px=halo_px, cores=cores)

    @property
    def window_shape(self) -> tuple[int, int]:
        """(rows, columns) of every window."""
        side = self.core_px + 2 * self.halo_px
        return side, side

    def __len__(self) -> int:
        return len(self.cores)

    def __getitem__(self, index: int) -> TileWindow:
        row, column = self.cores[index]
        inner = Window(row=self.halo_px, column=self.halo_px, height=self.core_px, width=self.core_px)
        cores = TileGrid(frame=self.frame, tile_shape=inner.shape)
        full = inner.shifted(row * self.core_px - self.halo_px, column * self.core_px - self.halo_px)
        return TileWindow(
            row=row,
            column=column,
            frame=self.frame.part(full.grown(self.halo_px)),
            core=cores.window(row, column),
            inner=inner,
        )

    def __iter__(self) -> Iterator[TileWindow]:
        return (self[index] for index in range(len(self)))


def stream_tiles(
    slide: FrameSource, plan: TilePlan, *, workers: int = 2
) -> Generator[tuple[TileWindow, NDArray[np.uint8] | None]]:
    """Read the windows of a plan on threads while the consumer works on earlier ones.

    At most 4 x workers windows and the reading buffers are in memory at any time, whatever the size of the slide.

    Args:
        slide: read from several threads at once.
        plan: what to read.
        workers: reading threads.

    Yields:
        (window, pixels) in the order of the plan; pixels are uint8 (rows, columns, 3) of the window's frame, or None
        if the slide stores no pixels under it: nothing needs to be inferred there.

    Raises:
        ValueError: workers < 1.
        SlideError: whatever reading raises, at the window's turn; later windows are dropped. Closing the iterator also
            ends the reading.
    """
    if workers < 1:
        raise ValueError(f"reading needs at least one worker, got {workers}")
    return _stream(slide, plan, workers)


def _stream(slide: FrameSource, plan: TilePlan, workers: int) -> Generator[tuple[TileWindow, NDArray[np.uint8] | None]]:
    def read(window: TileWindow) -> NDArray[np.uint8] | None:
        return None if slide.is_missing(window.frame) else slide.read_frame(window.frame).array

    with closing(map_in_order(read, plan, workers=workers, ahead=_AHEAD, name="tile")) as arrays:
        yield from zip(plan, arrays, strict=True)


def plan_to_dask(slide: SlideSource, plan: TilePlan) -> dask.array.Array:
    """The windows of a plan as one lazy array: uint8 (windows, rows, columns, 3), one chunk per window.

    A window's task carries only the slide's path and options and the window's position. Each process opens the slide
    once, however many tasks it gets.

    Args:
        slide: open or not.
        plan: at least one window. Windows without stored pixels are white.

    Raises:
        ValueError: the plan holds no window.
    """
    import dask.array as da  # noqa: PLC0415  (slow import)

    if not len(plan):
        raise ValueError("the plan holds no window")
    join: Any = da  # Dask's array functions are untyped
    positions = np.array([(window.frame.x, window.frame.y) for window in plan])
    windows: dask.array.Array = join.map_blocks(
        _read_chunk,
        join.from_array(positions, chunks=(1, 2)),
        recipe=Recipe.of(slide),
        whole=plan.frame,
        window_shape=plan.window_shape,
        chunks=((1,) * len(plan), *((side,) for side in plan.window_shape), (3,)),
        drop_axis=1,
        new_axis=(1, 2, 3),
        dtype=np.uint8,
        meta=np.empty((0, 0, 0, 0), np.uint8),
    )
    return windows


def _read_chunk(
    position: NDArray[np.float64], *, recipe: Recipe, whole: Frame, window_shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Uint8 (1, rows, columns, 3) of the window whose level-0 (x, y) is ``position``, (1, 2)."""
    x, y = position[0].tolist()
    frame = Frame(x=x, y=y, downsample=whole.downsample, shape=window_shape, mpp=whole.mpp)
    return recipe.opened().read_frame(frame).array[None]
