"""Pyramids that contradict themselves, lack levels or have no colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as Pillow
from slide_files import RNG, picture, write_tiff

from wsi.errors import SlideFormatError
from wsi.geometry import Level
from wsi.readers.levels import has_shape, missing_levels
from wsi.readers.resolution import OverridingMpp
from wsi.slide import Slide

OPTIONS: dict[str, Any] = {
    "tile": (64, 64),
    "photometric": "rgb",
    "metadata": None,
    "resolution": (40_000, 40_000),
    "resolutionunit": "CENTIMETER",
}


def pyramid(path: Path, *images: NDArray[np.uint8], **options: Any) -> Path:
    with tifffile.TiffWriter(path) as tiff:
        for image in images:
            tiff.write(image, **(OPTIONS | options | {"photometric": "rgb" if image.ndim == 3 else "minisblack"}))
    return path


def opened(path: Path) -> tuple[list[tuple[int, int]], str]:
    with Slide.open(path) as slide:
        return [level.shape for level in slide.levels], "\n".join(slide.warnings)


def level(width: int, height: int, downsample: float) -> Level:
    return Level(index=0, width=width, height=height, tile_width=512, tile_height=512, downsample=downsample)


def test_a_level_of_another_shape_is_left_out_and_named(tmp_path: Path) -> None:
    images = picture(800, 1200), picture(400, 600), picture(203, 300), picture(100, 150)
    shapes, said = opened(pyramid(tmp_path / "a.tif", *images))
    assert shapes == [(800, 1200), (400, 600), (100, 150)]
    assert "300 x 203 px that is no level: smaller than level 0 by 4 across but by 3.941 down; it is left out" in said


@pytest.mark.parametrize("full", [(1201, 803), (999, 1001), (65_537, 63)])
def test_rounding_of_every_kind_is_no_contradiction(full: tuple[int, int]) -> None:
    for halvings in range(1, 6):
        for down in (np.floor, np.ceil, np.rint):
            size = full
            for _ in range(halvings):
                size = max(1, int(down(size[0] / 2))), max(1, int(down(size[1] / 2)))
            assert has_shape(full, size)
    assert not has_shape(full, (full[0] // 2, full[1] // 2 + 4))


def test_a_grey_level_of_a_colour_slide_is_left_out(tmp_path: Path) -> None:
    shapes, said = opened(pyramid(tmp_path / "a.tif", picture(200, 300), picture(100, 150)[:, :, 0]))
    assert shapes == [(200, 300)]
    assert "150 x 100 px" in said


@pytest.mark.parametrize("stated", ['"0.0005" "0.0004"', '"0.0004" "0.0004"'], ids=["two factors", "too few pixels"])
def test_a_level_that_contradicts_its_description_is_left_out(sparse: Path, tmp_path: Path, stated: str) -> None:
    data, path = sparse.read_bytes(), tmp_path / "philips.tif"
    path.write_bytes(data.replace(b'"0.0005" "0.0005"', stated.encode()))
    assert opened(sparse) == ([(192, 256), (96, 128), (48, 64)], "")
    shapes, said = opened(path)
    assert shapes == [(192, 256), (48, 64)]
    assert "that its description gives another size; it is left out" in said


def test_lost_levels_are_said() -> None:
    assert missing_levels([level(16_000, 12_000, 1)]) == ()
    assert missing_levels([level(80_000, 60_000, 1), level(20_000, 15_000, 4), level(5000, 3750, 16)]) == ()
    (alone,) = missing_levels([level(100_000, 80_000, 1)])
    assert alone.startswith("has no level coarser than 100000 x 80000 px")
    (gap,) = missing_levels([level(100_000, 80_000, 1), level(1562, 1250, 64)])
    assert gap.startswith("has no level between 100000 x 80000 and 1562 x 1250 px")


def test_lost_levels_are_said_of_a_file(tmp_path: Path) -> None:
    shapes, said = opened(pyramid(tmp_path / "a.tif", np.zeros((16, 20_480, 3), np.uint8), tile=(16, 512)))
    assert shapes == [(16, 20_480)]
    assert "sentinode convert adds the missing levels" in said


def test_a_grey_slide_is_read_and_said(tmp_path: Path) -> None:
    grey = picture()[:, :, 0]
    for name in ("a.tif", "a.png", "a.jpg"):
        if name == "a.tif":
            write_tiff(tmp_path / name, grey, photometric="minisblack")
        else:
            Pillow.fromarray(grey).save(tmp_path / name)
        assert "is grey: " in opened(tmp_path / name)[1]
    assert "is grey" not in opened(write_tiff(tmp_path / "b.tif", picture()))[1]


def test_opacity_is_laid_over_white_or_said_to_be_left_out(tmp_path: Path) -> None:
    image = np.dstack([picture(), RNG.integers(0, 256, (200, 300), dtype=np.uint8)])
    opaque = write_tiff(tmp_path / "a.tif", image, extrasamples=["unassalpha"], compression="lzw")
    assert "fourth sample" not in opened(opaque)[1]
    unsaid = write_tiff(tmp_path / "b.tif", image, extrasamples=["unspecified"], compression="lzw")
    assert "a fourth sample per pixel that is not said to be opacity; it is left out" in opened(unsaid)[1]
    with Slide.open(unsaid) as slide:
        np.testing.assert_array_equal(slide.read_frame(slide.frame).array, image[:, :, :3])


def test_grey_with_opacity_is_refused(tmp_path: Path) -> None:
    image = picture()[:, :, :2]
    path = write_tiff(tmp_path / "a.tif", image, photometric="minisblack", planarconfig="contig", extrasamples=[2])
    with pytest.raises(SlideFormatError, match=r"a\.tif, directory 0: has 2 samples per pixel, not grey or RGB"):
        Slide.open(path)


def test_colours_in_pages_of_their_own_are_refused(tmp_path: Path) -> None:
    path = pyramid(tmp_path / "a.tif", *np.moveaxis(picture(), 2, 0))
    with pytest.raises(SlideFormatError, match="is spread over 3 grey pages of one size"):
        Slide.open(path)


@pytest.mark.parametrize(
    ("of_levels", "is_said"),
    [((0.5, 1.0, 2.0), False), ((0.5, 0.5, 0.5), False), ((0.5, 1.04, 2.0), False), ((0.5, 1.0, 16.0), True),
     ((1.0, 4.0, 8.0), True)],
)  # fmt: skip
def test_a_level_whose_resolution_does_not_fit_its_size_is_said(
    tmp_path: Path, of_levels: tuple[float, ...], *, is_said: bool
) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for number, um in enumerate(of_levels):
            level = np.full((512 >> number, 512 >> number, 3), 200, np.uint8)
            scale: dict[str, Any] = {"resolution": (1e4 / um,) * 2, "resolutionunit": "CENTIMETER"}
            file.write(level, tile=(128, 128), photometric="rgb", subfiletype=int(number > 0), **scale)
    with Slide.open(path) as slide:
        assert any("by its size" in warning for warning in slide.warnings) is is_said
        assert slide.mpp == pytest.approx(of_levels[0])
    with Slide.open(path, mpp=OverridingMpp(0.5)) as slide:
        assert not any("by its size" in warning for warning in slide.warnings)
