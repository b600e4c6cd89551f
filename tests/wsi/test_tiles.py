from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi.errors import TileError
from wsi.geometry import Frame
from wsi.raster import Image, Mask
from wsi.slide import Slide
from wsi.tiles import TilePlan, stream_tiles


class PositionSlide:
    """Every pixel tells its row and column; counts what is read and can fail or lack pixels."""

    def __init__(self, shape: tuple[int, int], missing_columns: int = 0, fails_at: int | None = None) -> None:
        self.frame = Frame(x=0, y=0, downsample=4.0, shape=shape, mpp=0.5)
        self.missing_columns = missing_columns
        self.fails_at = fails_at
        self.reads = 0
        self.threads: set[str] = set()
        self._lock = threading.Lock()

    def read_frame(self, frame: Frame) -> Image:
        with self._lock:
            self.reads += 1
            self.threads.add(threading.current_thread().name)
            if self.fails_at is not None and self.reads > self.fails_at:
                raise TileError("slide.tif", "cannot be decoded", where="level 0, tile row 3, column 7")
        rows = np.arange(frame.shape[0]) + round(frame.y / 4)
        columns = np.arange(frame.shape[1]) + round(frame.x / 4)
        array = np.zeros((*frame.shape, 3), np.uint8)
        array[..., 0], array[..., 1], array[..., 2] = rows[:, None] % 251, columns % 251, rows[:, None] // 251
        inside = ((rows >= 0) & (rows < self.frame.shape[0]))[:, None] & (columns >= 0)
        array[~(inside & (columns < self.frame.shape[1]))] = 255
        return Image(frame=frame, array=array)

    def is_missing(self, frame: Frame) -> bool:
        return (frame.x + frame.shape[1] * frame.downsample) / 4 <= self.missing_columns


def threads_that_read() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tile")]


def mask_of(array: np.ndarray, *, x: float, y: float, downsample: float) -> Mask:
    frame = Frame(x=x, y=y, downsample=downsample, shape=(array.shape[0], array.shape[1]), mpp=0.5)
    return Mask(frame=frame, array=array)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    core=st.integers(1, 40),
    mask_downsample=st.sampled_from([1.0, 3.0, 4.0, 7.5, 64.0]),
    offset=st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
    seed=st.integers(0, 1000),
)
def test_plan_keeps_exactly_the_cores_that_mask_pixels_overlap(
    shape: tuple[int, int], core: int, mask_downsample: float, offset: tuple[int, int], seed: int
) -> None:
    array = np.random.default_rng(seed).random((20, 17)) < 0.02
    mask = mask_of(array, x=offset[0], y=offset[1], downsample=mask_downsample)
    frame = Frame(x=0, y=0, downsample=4.0, shape=shape, mpp=0.5)
    plan = TilePlan.over(frame, core_px=core, halo_px=3, mask=mask)
    expected = set()
    for row in range(-(-shape[0] // core)):
        for column in range(-(-shape[1] // core)):
            for i, j in np.argwhere(array):
                top, left = offset[1] + i * mask_downsample, offset[0] + j * mask_downsample
                if min(top + mask_downsample, (row + 1) * core * 4) > max(top, row * core * 4) and min(
                    left + mask_downsample, (column + 1) * core * 4
                ) > max(left, column * core * 4):
                    expected.add((row, column))
    assert list(plan.cores) == sorted(expected)


@settings(max_examples=30, deadline=None)
@given(st.tuples(st.integers(1, 200), st.integers(1, 200)), st.integers(1, 90), st.integers(0, 20))
def test_cores_cover_every_pixel_once_and_lie_inside_their_windows(
    shape: tuple[int, int], core: int, halo: int
) -> None:
    slide = PositionSlide(shape)
    plan = TilePlan.over(slide.frame, core_px=core, halo_px=halo)
    whole = slide.read_frame(slide.frame).array
    count = np.zeros(shape, int)
    for window in plan:
        count[window.core.slices] += 1
        pixels = slide.read_frame(window.frame).array
        assert pixels.shape[:2] == plan.window_shape == (core + 2 * halo, core + 2 * halo)
        stored = whole[window.core.slices]
        np.testing.assert_array_equal(pixels[window.inner.slices][: stored.shape[0], : stored.shape[1]], stored)
    assert (count == 1).all()


@pytest.mark.parametrize(("core", "halo"), [(0, 0), (8, -1)])
def test_impossible_windows_are_refused(core: int, halo: int) -> None:
    with pytest.raises(ValueError, match="core_px"):
        TilePlan.over(Frame(x=0, y=0, downsample=1, shape=(9, 9), mpp=None), core_px=core, halo_px=halo)


@pytest.mark.parametrize("workers", [1, 3])
def test_streaming_keeps_the_plans_order(workers: int) -> None:
    slide = PositionSlide((300, 170))
    plan = TilePlan.over(slide.frame, core_px=32, halo_px=5)
    got = list(stream_tiles(slide, plan, workers=workers))
    assert [window for window, _ in got] == list(plan)
    for window, pixels in got:
        assert pixels is not None
        np.testing.assert_array_equal(pixels, slide.read_frame(window.frame).array)
    assert all(name.startswith("tile") for name in slide.threads - {threading.current_thread().name})


def test_an_empty_plan_streams_nothing() -> None:
    slide = PositionSlide((30, 30))
    plan = TilePlan.over(slide.frame, core_px=8, mask=mask_of(np.zeros((3, 3), bool), x=0, y=0, downsample=10))
    assert list(stream_tiles(slide, plan)) == []


def test_look_ahead_is_bounded() -> None:
    slide = PositionSlide((64, 64 * 40))
    plan = TilePlan.over(slide.frame, core_px=64)
    with closing(stream_tiles(slide, plan, workers=2)) as windows:
        for taken in range(1, 10):
            next(windows)
            time.sleep(0.02)  # time enough to read far ahead, were it not bounded
            assert slide.reads <= taken + 8
    assert slide.reads < 40


def test_windows_without_stored_pixels_are_not_read() -> None:
    slide = PositionSlide((64, 256), missing_columns=128)
    plan = TilePlan.over(slide.frame, core_px=64)
    got = [pixels is None for _, pixels in stream_tiles(slide, plan, workers=2)]
    assert got == [True, True, False, False]
    assert slide.reads == 2


def test_a_failing_read_ends_the_stream_with_its_own_error() -> None:
    slide = PositionSlide((64, 64 * 30), fails_at=7)
    plan = TilePlan.over(slide.frame, core_px=64)
    taken: list[object] = []
    with pytest.raises(TileError, match="tile row 3, column 7"):
        taken.extend(window for window, _ in stream_tiles(slide, plan, workers=2))
    assert len(taken) == 7  # in order: everything before the fault
    assert slide.reads < 30
    assert not threads_that_read()


def test_closing_ends_the_reading_and_its_threads() -> None:
    slide = PositionSlide((64, 64 * 100))
    windows = stream_tiles(slide, TilePlan.over(slide.frame, core_px=64), workers=2)
    next(windows)
    windows.close()
    reads = slide.reads
    assert reads <= 8
    assert not threads_that_read()


@pytest.mark.slow
def test_reading_ahead_loads_no_dask(plain: Path) -> None:
    code = (
        "import sys\n"
        "from wsi.slide import Slide\n"
        "from wsi.tiles import TilePlan, stream_tiles\n"
        "slide = Slide.open(sys.argv[1])\n"
        "print(len(list(stream_tiles(slide, TilePlan.over(slide.frame, core_px=100)))), 'dask' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, plain], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["25", "False"]


def test_no_workers_are_refused_at_once() -> None:
    slide = PositionSlide((8, 8))
    with pytest.raises(ValueError, match="worker"):
        stream_tiles(slide, TilePlan.over(slide.frame, core_px=8), workers=0)


def test_a_real_slides_windows_fit_together(real_data: Callable[[str], Path]) -> None:
    with Slide.open(real_data("slides/CMU-1-Small-Region.svs")) as slide:
        frame = slide.frame_at(2.0)
        whole = slide.read_frame(frame).array
        plan = TilePlan.over(frame, core_px=200, halo_px=28)
        stitched = np.zeros_like(whole)
        for window, pixels in stream_tiles(slide, plan, workers=2):
            assert pixels is not None
            where = stitched[window.core.slices]
            where[...] = pixels[window.inner.slices][: where.shape[0], : where.shape[1]]
    np.testing.assert_array_equal(stitched, whole)
