"""Which windows of a slide are looked at, and their reading in parallel with whoever looks at them.

A TilePlan is pure: the slide's frame at one resolution is cut into equal square cores, those that touch the mask are
kept, and each is read with a halo around it so that what is computed from neighbouring windows fits together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame
from wsi.raster import Image, Mask
from wsi.tissue import covers

if TYPE_CHECKING:
    import dask.array

_GROUP_PER_WORKER = 2


class FrameSource(Protocol):
    """What reading a plan needs of a Slide."""

    def read_frame(self, frame: Frame) -> Image: ...
    def is_missing(self, frame: Frame) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TileWindow:
    """One window of a plan.

    Attributes:
        row, column: of the core in the grid of cores.
        frame: what is read: the core and its halo, always the same size; may reach beyond the slide (read as white).
        inner: where the core lies in the window's array.
        slices: where the core lies in the array of the plan's frame, cut off at its edge.
    """

    row: int
    column: int
    frame: Frame
    inner: tuple[slice, slice]
    slices: tuple[slice, slice]


@dataclass(frozen=True, slots=True, kw_only=True)
class TilePlan:
    """The windows of a frame that are to be read, row by row.

    Attributes:
        frame: the whole slide at the resolution of the windows.
        core_px: side of a core in px of the frame; cores lie side by side from the frame's top left corner.
        halo_px: what is read around each core.
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
            halo_px: what is read around each core.
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
        top, left = row * self.core_px, column * self.core_px
        height, width = self.window_shape
        rows, columns = self.frame.shape
        inner = slice(self.halo_px, self.halo_px + self.core_px)
        return TileWindow(
            row=row,
            column=column,
            frame=self.frame.window(row=top - self.halo_px, column=left - self.halo_px, height=height, width=width),
            inner=(inner, inner),
            slices=(slice(top, min(top + self.core_px, rows)), slice(left, min(left + self.core_px, columns))),
        )

    def __iter__(self) -> Iterator[TileWindow]:
        return (self[index] for index in range(len(self)))


def stream_tiles(
    slide: FrameSource, plan: TilePlan, *, workers: int = 2
) -> Generator[tuple[TileWindow, NDArray[np.uint8] | None]]:
    """Read the windows of a plan on Dask's threads while the consumer works on earlier ones.

    Windows are read in groups of 2 x workers. While the consumer takes the windows of one group the next is read, so
    that at most 4 x workers windows and what reading them takes are held at any time, whatever the size of the slide.

    Args:
        slide: read from several threads at once.
        plan: what to read.
        workers: threads that read.

    Yields:
        (window, pixels) in the order of the plan; pixels are uint8 (rows, columns, 3) of the window's frame, or None
        where the slide stores no pixels under it: nothing is to be inferred there.

    Raises:
        ValueError: workers < 1.
        SlideError: whatever reading raises; later windows are given up. Closing the iterator also ends the reading.
    """
    if workers < 1:
        raise ValueError(f"reading needs at least one worker, got {workers}")
    return _stream(slide, plan, workers)


def _stream(slide: FrameSource, plan: TilePlan, workers: int) -> Generator[tuple[TileWindow, NDArray[np.uint8] | None]]:
    size = _GROUP_PER_WORKER * workers
    groups = (
        [plan[index] for index in range(start, min(start + size, len(plan)))] for start in range(0, len(plan), size)
    )
    with ThreadPoolExecutor(workers, "tile") as readers, ThreadPoolExecutor(1, "tiles") as ahead:
        group = next(groups, None)
        pending = None if group is None else ahead.submit(_read_group, slide, group, readers)
        while group is not None and pending is not None:
            ready = deque(zip(group, pending.result(), strict=True))
            group = next(groups, None)
            pending = None if group is None else ahead.submit(_read_group, slide, group, readers)
            while ready:
                yield ready.popleft()


def _read_group(
    slide: FrameSource, group: Sequence[TileWindow], readers: ThreadPoolExecutor
) -> list[NDArray[np.uint8] | None]:
    from dask.base import compute  # noqa: PLC0415  (slow import)
    from dask.delayed import delayed  # noqa: PLC0415

    read = delayed(_read, pure=False)
    tasks = [read(slide, window.frame) for window in group]
    options: dict[str, Any] = {"scheduler": "threads", "pool": readers, "optimize_graph": False}
    pixels: list[NDArray[np.uint8] | None] = list(compute(*tasks, **options))  # type: ignore[no-untyped-call]
    return pixels


def _read(slide: FrameSource, frame: Frame) -> NDArray[np.uint8] | None:
    return None if slide.is_missing(frame) else slide.read_frame(frame).array


def plan_to_dask(slide: FrameSource, plan: TilePlan) -> dask.array.Array:
    """The windows of a plan as one lazy array: uint8 (windows, rows, columns, 3), one chunk per window.

    Args:
        slide: pickled along with each chunk where the chunks are computed in other processes.
        plan: at least one window. Windows without stored pixels are white.

    Raises:
        ValueError: the plan holds no window.
    """
    import dask.array as da  # noqa: PLC0415  (slow import)
    from dask.delayed import delayed  # noqa: PLC0415

    if not len(plan):
        raise ValueError("the plan holds no window")
    read = delayed(_read_one, pure=False)
    shape = (1, *plan.window_shape, 3)
    join: Any = da  # Dask's array functions carry no types
    windows: dask.array.Array = join.concatenate(
        [join.from_delayed(read(slide, window.frame), shape, np.uint8) for window in plan]
    )
    return windows


def _read_one(slide: FrameSource, frame: Frame) -> NDArray[np.uint8]:
    return slide.read_frame(frame).array[None]
