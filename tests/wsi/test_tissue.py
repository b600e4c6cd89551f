from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsi.errors import NoTissueError, ResolutionError
from wsi.geometry import Frame
from wsi.raster import Mask
from wsi.slide import Slide
from wsi.tissue import covers, find_tissue, tissue_area_um2
from wsi.writing.pyramid import write_pyramid

SIDE = 1024
GLASS = (243, 242, 244)


def a_slide(path: Path, paint: Callable[[NDArray[np.uint8]], None], mpp: float | None = 4.0) -> Slide:
    rng = np.random.default_rng(0)
    image = (np.array(GLASS) + rng.integers(-2, 3, (SIDE, SIDE, 1))).astype(np.uint8)
    paint(image)
    tiles = (image[row : row + 512, column : column + 512] for row in (0, 512) for column in (0, 512))
    write_pyramid(path, width=SIDE, height=SIDE, mpp=mpp or 4.0, tiles=tiles)
    return Slide.open(path)


def disc(centre: tuple[int, int], radius: int) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    inside: NDArray[np.bool_] = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2
    return inside


@pytest.mark.parametrize(
    ("name", "colour"),
    [("cortex", (110, 70, 140)), ("eosin", (225, 170, 205)), ("pale stroma", (232, 214, 230)), ("dark", (60, 35, 70))],
)
def test_tissue_of_any_strength_is_found_with_its_area(name: str, colour: tuple[int, int, int], tmp_path: Path) -> None:
    where = disc((500, 480), 200)

    def paint(image: NDArray[np.uint8]) -> None:
        image[where] = colour

    with a_slide(tmp_path / f"{name}.tif", paint) as slide:
        mask = find_tissue(slide)
    # the mask is grown by up to three 16 um cells on purpose: never lose the rim
    radius_um = 200 * 4.0
    assert np.pi * radius_um**2 < tissue_area_um2(mask) < np.pi * (radius_um + 3 * 16) ** 2


def test_a_small_pale_piece_is_kept_beside_a_large_dark_one(tmp_path: Path) -> None:
    def paint(image: NDArray[np.uint8]) -> None:
        image[disc((500, 300), 250)] = (80, 45, 100)
        image[disc((200, 850), 60)] = (233, 216, 231)

    with a_slide(tmp_path / "two.tif", paint) as slide:
        mask = find_tissue(slide)
    row, column = (int(value) for value in mask.frame.fractions(850.0, 200.0))
    assert mask.array[row, column]


def test_glass_specks_and_marker_are_no_tissue(tmp_path: Path) -> None:
    def paint(image: NDArray[np.uint8]) -> None:
        image[disc((500, 300), 200)] = (150, 90, 160)
        image[100:140, 600:1000] = (40, 150, 110)
        image[900:960, 500:1000] = (72, 70, 76)
        image[650:700, 600:1000] = (107, 116, 194)
        image[disc((800, 800), 8)] = (60, 50, 60)

    with a_slide(tmp_path / "marked.tif", paint) as slide:
        mask = find_tissue(slide)
    for x, y in ((800.0, 120.0), (750.0, 930.0), (800.0, 675.0), (800.0, 800.0), (900.0, 500.0)):
        row, column = (int(value) for value in mask.frame.fractions(x, y))
        assert not mask.array[row, column]


def test_holes_are_filled_but_not_a_large_lumen(tmp_path: Path) -> None:
    def paint(image: NDArray[np.uint8]) -> None:
        image[disc((500, 500), 350)] = (150, 90, 160)
        image[disc((400, 400), 30)] = GLASS
        image[disc((600, 600), 150)] = GLASS

    with a_slide(tmp_path / "holes.tif", paint) as slide:
        mask = find_tissue(slide)
    assert mask.array[100, 100]
    assert not mask.array[150, 150]


def test_a_slide_without_tissue_is_an_error_that_names_it(tmp_path: Path) -> None:
    with a_slide(tmp_path / "blank.tif", lambda _: None) as slide, pytest.raises(NoTissueError, match=r"blank\.tif"):
        find_tissue(slide)


def test_a_slide_that_is_all_tissue_is_all_tissue(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)

    def paint(image: NDArray[np.uint8]) -> None:
        image[:] = np.array([140, 90, 150]) + rng.integers(-25, 26, image.shape)

    with a_slide(tmp_path / "full.tif", paint) as slide:
        assert find_tissue(slide).array.mean() > 0.99


def test_without_a_resolution_it_refuses(real_data: Callable[[str], Path]) -> None:
    with Slide.open(real_data("slides/boxes.tiff")) as slide:
        assert slide.mpp is None
        with pytest.raises(ResolutionError):
            find_tissue(slide)


def test_a_real_slide_has_tissue_where_one_sees_it(real_data: Callable[[str], Path]) -> None:
    with Slide.open(real_data("slides/CMU-1-Small-Region.svs")) as slide:
        mask = find_tissue(slide)
    assert 0.3 < mask.array.mean() < 0.6
    for x, y, expected in ((900.0, 2500.0, True), (200.0, 300.0, False), (2100.0, 200.0, False)):
        row, column = (int(value) for value in mask.frame.fractions(x, y))
        assert mask.array[row, column] == expected


@pytest.mark.slow
@given(data=st.data())
def test_covers_agrees_with_a_brute_force(data: st.DataObject) -> None:
    rows, columns = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    array = np.array(data.draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)))
    mask = Mask(
        frame=Frame(x=0, y=0, downsample=data.draw(st.sampled_from([4, 6, 10])), shape=(rows, columns), mpp=None),
        array=array.reshape(rows, columns),
    )
    frame = Frame(
        x=data.draw(st.integers(-9, 40)),
        y=data.draw(st.integers(-9, 40)),
        downsample=data.draw(st.sampled_from([1, 3, 8, 15])),
        shape=(5, 7),
        mpp=None,
    )
    step, side = int(frame.downsample), int(mask.frame.downsample)
    fine = np.zeros((300, 300), bool)
    fine[100 : 100 + rows * side, 100 : 100 + columns * side] = np.kron(mask.array, np.ones((side, side), bool))
    expected = [
        [
            fine[
                100 + int(frame.y) + row * step : 100 + int(frame.y) + (row + 1) * step,
                100 + int(frame.x) + column * step : 100 + int(frame.x) + (column + 1) * step,
            ].any()
            for column in range(7)
        ]
        for row in range(5)
    ]
    np.testing.assert_array_equal(covers(mask, frame), expected)
