"""Slides as lazy Dask arrays, computed by two worker processes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.protocol.pickle import dumps
from slide_files import picture, write_tiff

from wsi import lazy
from wsi.errors import TileError
from wsi.geometry import Region, Window
from wsi.raster import Mask
from wsi.slide import Slide
from wsi.tiles import TilePlan, plan_to_dask


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two processes of one thread each."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def processes_that_hold(client: Any, computed: Any) -> set[str]:
    return {worker for workers in client.who_has(computed).values() for worker in workers}


def plan_of(slide: Slide, mpp: float) -> TilePlan:
    """Windows with halo; the corner of the slide is no tissue, its stored tiles are missing in part."""
    frame = slide.frame_at(mpp)
    tissue = np.ones((5, 5), bool)
    tissue[0, 0] = tissue[2, 3] = False
    mask = Mask(frame=slide.frame.coarser(100), array=tissue)
    return TilePlan.over(frame, core_px=40, halo_px=7, mask=mask)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_level_on_two_processes_equals_the_level(client: Any, plain: Path, level: int) -> None:
    with Slide.open(plain) as slide:
        whole = slide.read_frame(slide.frame_of(level)).array
        array: Any = slide.to_dask(level, tiles_per_chunk=1)
    kept = client.persist(array)  # the slide is closed here: workers open their own
    np.testing.assert_array_equal(kept.compute(), whole)
    if level == 0:
        assert len(processes_that_hold(client, kept)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.6])
def test_the_windows_of_a_plan_on_two_processes_equal_each_read_frame(client: Any, plain: Path, mpp: float) -> None:
    with Slide.open(plain) as slide:
        plan = plan_of(slide, mpp)
        windows: Any = plan_to_dask(slide, plan)
        assert windows.shape == (len(plan), 54, 54, 3)
        assert windows.chunks[0] == (1,) * len(plan)
        kept = client.persist(windows)
        for found, window in zip(kept.compute(), plan, strict=True):
            np.testing.assert_array_equal(found, slide.read_frame(window.frame).array)
    assert len(processes_that_hold(client, kept)) == 2


def test_resolution_and_treatment_of_bad_tiles_travel_along(client: Any, plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.tif"
    path.write_bytes(plain.read_bytes())
    with Slide.open(path) as slide:
        stored = slide.stored_tiles(0)
        assert stored is not None
        at = path.read_bytes().index(stored.read(1, 1) or b"none")
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(60))
    with Slide.open(path, mpp=0.5, on_bad_tile="white") as lenient:
        frame = lenient.frame_at(1.0)
        windows: Any = plan_to_dask(lenient, TilePlan.over(frame, core_px=60))
        found = client.compute(windows[0]).result()
        np.testing.assert_array_equal(found, lenient.read_frame(frame.part(Window.whole((60, 60)))).array)
    strict: Any = Slide(path).to_dask(0, tiles_per_chunk=8)
    with pytest.raises(TileError, match=r"bad\.tif, level 0, tile row 1, tile column 1"):
        client.compute(strict).result()


def read_there(slide: Slide) -> tuple[int, np.ndarray]:
    return os.getpid(), slide.read(Region(x=60, y=70, width=200, height=100)).array


@pytest.mark.slow
def test_a_slide_travels_as_its_path(client: Any, plain: Path) -> None:
    with Slide.open(plain) as slide:
        assert len(pickle.dumps(slide)) < 1000
        process, array = client.submit(read_there, slide).result()
        assert process != os.getpid()
        np.testing.assert_array_equal(array, read_there(slide)[1])


def open_slides() -> int:
    return lazy._opened.cache_info().misses


@pytest.mark.slow
def test_a_process_opens_a_slide_once(client: Any, tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(640, 640), compression="lzw")
    before = client.run(open_slides)
    with Slide.open(path) as slide:
        plan = TilePlan.over(slide.frame, core_px=64)
        assert len(plan) == 100
        np.testing.assert_array_equal(
            plan_to_dask(slide, plan).max(axis=(1, 2, 3)).compute(),  # type: ignore[no-untyped-call]
            [slide.read_frame(window.frame).array.max() for window in plan],
        )
        np.testing.assert_array_equal(slide.to_dask().compute(), slide.read_frame(slide.frame).array)  # type: ignore[no-untyped-call]
    after = client.run(open_slides)
    assert all(after[worker] - before[worker] <= 1 for worker in before)
    assert sum(after.values()) - sum(before.values()) >= 1


@pytest.mark.slow
def test_a_task_carries_a_path_and_a_position(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slide, "read_frame", None)  # nothing is read yet
    monkeypatch.setattr(Slide, "read_window", None)
    with Slide.open(plain) as slide:
        for array in (plan_to_dask(slide, TilePlan.over(slide.frame, core_px=8)), slide.to_dask(0, tiles_per_chunk=1)):
            graph: Any = dict(array.dask)
            assert max(len(dumps(task)) for task in graph.values()) < 1500


def test_a_plan_without_windows_is_refused(plain: Path) -> None:
    with Slide.open(plain) as slide, pytest.raises(ValueError, match="no window"):
        plan_to_dask(slide, TilePlan(frame=slide.frame, core_px=8, halo_px=0, cores=()))
