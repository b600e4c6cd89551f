"""Many patches at once: the same pixels as one by one, and passes that hold every patch once."""

from __future__ import annotations

import pickle
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pillow

from wsi.errors import SlideNotFoundError
from wsi.geometry import Frame
from wsi.patches.passes import PassPlan
from wsi.patches.pool import SlidePool
from wsi.patches.reading import PatchPositions, _extents, read_patches, read_positions, source_windows
from wsi.readers.tiff import TiffReader
from wsi.resample import plan_axis
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

WIDTH, HEIGHT, TILE = 700, 530, 64


def noise(height: int, width: int, seed: int = 5) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_noise(path: Path, seed: int = 5) -> Path:
    rows, columns = -(-HEIGHT // TILE), -(-WIDTH // TILE)
    image = noise(rows * TILE, columns * TILE, seed)
    tiles = [
        None if (row + column) % 7 == 0 else image[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
        for row in range(rows)
        for column in range(columns)
    ]
    write_pyramid(path, width=WIDTH, height=HEIGHT, mpp=0.5, tiles=tiles, tile_size=TILE, levels=3)
    return path


@pytest.fixture(scope="module")
def tiff(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    return Slide.open(write_noise(tmp_path_factory.mktemp("slides") / "a.tif"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Pillow.fromarray(noise(HEIGHT, WIDTH)).save(path)
    return Slide.open(path)


def one_by_one(slide: Slide, x: Any, y: Any, downsample: float, side: int) -> NDArray[np.uint8]:
    return np.stack(
        [
            slide.read_frame(Frame(x=left, y=top, downsample=downsample, shape=(side, side), mpp=None)).array
            for left, top in zip(x, y, strict=True)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiff", "picture"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pixels_are_those_of_read_frame(kind: str, request: pytest.FixtureRequest, data: st.DataObject) -> None:
    slide = request.getfixturevalue(kind)
    downsample = data.draw(st.sampled_from([1.0, 2.0, 4.0, 3.0, 8.0]) | st.floats(0.4, 9.0))
    side = data.draw(st.integers(1, 40))
    count = data.draw(st.integers(1, 6))
    corners = st.integers(-100, 800).map(float) | st.floats(-60, 760)
    x = np.array(data.draw(st.lists(corners, min_size=count, max_size=count)))
    y = np.array(data.draw(st.lists(corners, min_size=count, max_size=count)))
    found = read_patches(slide, x, y, downsample=downsample, size_px=side, workers=1)
    np.testing.assert_array_equal(found, one_by_one(slide, x, y, downsample, side))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    origins=st.lists(st.floats(-1e5, 2e5) | st.integers(-1000, 100_000).map(float), min_size=1, max_size=5),
    ratio=st.sampled_from([1.0, 2.0, 7.0, 1 / 3, 0.8 / 0.243]) | st.floats(0.01, 40.0),
    count=st.integers(1, 600),
)
def test_extents_are_those_of_the_plans(origins: list[float], ratio: float, count: int) -> None:
    start, length = _extents(np.array(origins), ratio, count)
    plans = [plan_axis(origin=origin, ratio=ratio, count=count) for origin in origins]
    assert start.tolist() == [plan.start for plan in plans]
    assert (start + length).tolist() == [plan.stop for plan in plans]


def test_patches_on_the_grid_of_a_resolution_and_in_small_shares(tiff: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi.patches.reading._SOURCE_BYTES", 3 * 50 * 50 * 4)
    whole = tiff.frame_at(0.8)
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 400, (2, 20)) * whole.downsample
    found = read_patches(tiff, x, y, downsample=whole.downsample, size_px=24)
    np.testing.assert_array_equal(found, one_by_one(tiff, x, y, whole.downsample, 24))
    assert read_patches(tiff, x[:0], y[:0], downsample=1.0, size_px=24).shape == (0, 24, 24, 3)


def places_on(paths: list[Path], count: int, *, seed: int = 0, side: int = 16) -> PatchPositions:
    rng = np.random.default_rng(seed)
    return PatchPositions(
        slides=tuple(str(path) for path in paths),
        slide=rng.integers(0, len(paths), count).astype(np.int32),
        x=rng.integers(0, WIDTH - 2 * side, count).astype(np.float64),
        y=rng.integers(0, HEIGHT - 2 * side, count).astype(np.float64),
        downsample=rng.choice([1.0, 1.6, 2.0], count),
        size_px=side,
    )


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("several")
    return [write_noise(folder / f"s{number}.tif", seed=number) for number in range(4)]


def test_places_of_several_slides_come_in_the_order_asked_for(slides: list[Path]) -> None:
    positions, pool = places_on(slides, 40), SlidePool(2)
    chosen = np.random.default_rng(2).permutation(40)[:25]
    found = read_positions(positions, chosen, pool)
    for index, pixels in zip(chosen.tolist(), found, strict=True):
        with Slide.open(slides[positions.slide[index]]) as slide:
            one = one_by_one(slide, [positions.x[index]], [positions.y[index]], float(positions.downsample[index]), 16)
        np.testing.assert_array_equal(pixels, one[0])
    assert len(pool) == 2
    assert len(pickle.loads(pickle.dumps(pool))) == 0  # noqa: S301  (our own bytes)


def test_a_pool_gives_the_oldest_slide_back(slides: list[Path]) -> None:
    pool = SlidePool(2)
    first, second = pool.get(slides[0]), pool.get(slides[1])
    assert pool.get(slides[0]) is first
    pool.get(slides[2])
    with pytest.raises(ValueError, match="closed"):
        _ = second.levels
    assert first.levels
    with pytest.raises(SlideNotFoundError):
        pool.get(slides[0].with_name("none.tif"))
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        _ = first.levels
    with pytest.raises(ValueError, match="at least one"):
        SlidePool(0)


def tiles_of(positions: PatchPositions, pool: SlidePool, index: int) -> set[tuple[int, int, int, int]]:
    """Brute force: (slide, level, tile row, tile column) under a patch."""
    number = int(positions.slide[index])
    slide = pool.get(positions.slides[number])
    level, windows = source_windows(
        slide,
        positions.x[index : index + 1],
        positions.y[index : index + 1],
        downsample=float(positions.downsample[index]),
        size_px=positions.size_px,
    )
    (window,) = windows
    return {
        (number, level.index, y // TILE, x // TILE)
        for y in range(window.row, window.bottom)
        for x in range(window.column, window.right)
    }


def test_clusters_share_no_tile(slides: list[Path]) -> None:
    positions, pool = places_on(slides[:2], 30), SlidePool()
    plan = PassPlan.of(positions, pool, stretch=100)
    assert sorted(np.concatenate(plan.clusters).tolist()) == list(range(30))
    seen: set[tuple[Any, ...]] = set()
    for cluster in plan.clusters:
        # one resolution at a time is read together
        tiles = {
            (float(positions.downsample[index]), *tile)
            for index in cluster.tolist()
            for tile in tiles_of(positions, pool, index)
        }
        assert not tiles & seen
        seen |= tiles
    assert max(len(cluster) for cluster in plan.clusters) > 1


def test_a_pass_decodes_every_tile_once(slides: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    positions, pool = places_on(slides, 60, side=24), SlidePool()
    positions = PatchPositions(
        slides=positions.slides, slide=positions.slide, x=positions.x, y=positions.y, downsample=np.ones(60), size_px=24
    )
    distinct = set().union(*(tiles_of(positions, pool, index) for index in range(60)))
    pasted: list[tuple[int, int]] = []
    paste = TiffReader._paste

    def counted(self: TiffReader, level: int, index: int, *rest: Any, **options: Any) -> None:
        pasted.append((level, index))
        paste(self, level, index, *rest, **options)

    monkeypatch.setattr(TiffReader, "_paste", counted)
    plan = PassPlan.of(positions, pool, stretch=60, block=60)
    for block in plan.blocks(seed=1, epoch=2):
        read_positions(positions, block, pool, workers=1)
    assert len(pasted) == len(distinct)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=12),
    stretch=st.integers(1, 12),
    block=st.integers(1, 20),
    parts=st.integers(1, 7),
    epoch=st.integers(0, 3),
    even=st.booleans(),
)
def test_the_parts_of_a_pass_hold_every_patch_once(
    sizes: list[tuple[int, int]], stretch: int, block: int, parts: int, epoch: int, *, even: bool
) -> None:
    ends = np.cumsum([0, *(size for size, _ in sizes)])
    clusters = tuple(np.arange(start, stop) for start, stop in pairwise(ends.tolist()))
    plan = PassPlan(
        clusters=clusters, slide_of=np.array(sorted(s for _, s in sizes), np.int32), stretch=stretch, block=block
    )
    found = [
        [list(some) for some in plan.blocks(seed=3, epoch=epoch, number=number, parts=parts, even=even)]
        for number in range(parts)
    ]
    held = [list(chain.from_iterable(some)) for some in found]
    every = list(chain.from_iterable(held))
    assert len(every) == len(set(every))
    assert all(0 < len(some) <= block for part in found for some in part)
    if even:
        assert {len(part) for part in held} == {plan.count // parts}
    else:
        assert sorted(every) == list(range(plan.count))
    straight = [list(some) for some in plan.blocks(seed=3, epoch=epoch, shuffle=False)]
    assert list(chain.from_iterable(straight)) == list(range(plan.count))


def test_passes_differ_and_can_be_repeated(slides: list[Path]) -> None:
    plan = PassPlan.of(places_on(slides, 200), SlidePool(), stretch=16, block=64)

    def order(epoch: int, seed: int = 0) -> list[int]:
        return [int(index) for block in plan.blocks(seed=seed, epoch=epoch) for index in block]

    assert order(0) == order(0)
    assert len({tuple(order(0)), tuple(order(1)), tuple(order(0, seed=1))}) == 3
    # A block mixes slides.
    positions = places_on(slides, 200)
    first = next(plan.blocks(seed=0, epoch=0))
    assert len(np.unique(positions.slide[first])) > 1


def test_places_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="an x, a y"):
        PatchPositions(
            slides=("a",),
            slide=np.zeros(2, np.int32),
            x=np.zeros(1),
            y=np.zeros(2),
            downsample=np.ones(2),
            size_px=4,
        )
    with pytest.raises(ValueError, match="beyond the 1 given"):
        PatchPositions(
            slides=("a",), slide=np.ones(1, np.int32), x=np.zeros(1), y=np.zeros(1), downsample=np.ones(1), size_px=4
        )
