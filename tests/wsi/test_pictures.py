"""Which pages of a TIFF are the slide, which are named and left out, and by what name a file is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as Pillow
from slide_files import drop_tag, picture, write_tiff

from wsi.errors import SlideFormatError
from wsi.slide import Slide

RealData = Callable[[str], Path]
TILED: dict[str, Any] = {"tile": (64, 64), "metadata": None}
ONE_PLANE = 'SizeC="3" SizeZ="1" SizeT="1"'
IMAGEJ = "ImageJ=1.54\nimages=5\n"
BEFORE_OME = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'


def ome(*images: str) -> str:
    return BEFORE_OME + "".join(images) + "</OME>"


def ome_image(
    width: int,
    height: int,
    *,
    name: str = "",
    um: float = 0.25,
    unit: str = "µm",
    sizes: str = ONE_PLANE,
    channels: str = "",
) -> str:
    size = f'SizeX="{width}" SizeY="{height}" {sizes}'
    scale = "".join(f'PhysicalSize{axis}="{um}" PhysicalSize{axis}Unit="{unit}" ' for axis in "XY")
    return f'<Image ID="Image:0" Name="{name}"><Pixels {size} {scale}>{channels}</Pixels></Image>'


def write_pages(path: Path, *pages: tuple[NDArray[Any], dict[str, Any]]) -> Path:
    with tifffile.TiffWriter(path) as tiff:
        for image, options in pages:
            tiff.write(image, **({"photometric": "rgb" if image.ndim == 3 else "minisblack"} | TILED | options))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(SlideFormatError) as refused:
        Slide.open(path)
    return str(refused.value)


def test_a_page_of_another_depth_or_kind_is_no_level_and_no_reason_to_refuse(tmp_path: Path) -> None:
    image = picture(200, 300)
    grey = image[::2, ::2, 0]
    path = write_pages(
        tmp_path / "a.tif",
        (image, {}),
        (image[::2, ::2].copy(), {"subfiletype": 1}),
        (grey.astype(np.uint16), {}),
        (grey.astype(np.float32), {}),
        (np.repeat(grey[:, :, None], 7, axis=2), {"photometric": "minisblack", "planarconfig": "contig"}),
    )
    with Slide.open(path) as slide:
        assert [level.shape for level in slide.levels] == [(200, 300), (100, 150)]
        np.testing.assert_array_equal(slide.read_frame(slide.frame).array, image)
        left_out = [doubt for doubt in slide.warnings if "left out" in doubt]
    assert [doubt.split(": ")[1].split(";")[0] for doubt in left_out] == [
        "its samples have 16 bits",
        "its samples have 32 bits",
        "it has 7 samples per pixel",
    ]


def test_the_file_of_the_report_has_two_levels(real_data: RealData) -> None:
    path = real_data("reports/extra_page_16bit.tif")
    with Slide.open(path) as slide:
        assert len(slide.levels) == 2
        right = np.asarray(Pillow.open(f"{path}.right.png").convert("RGB"))
        np.testing.assert_array_equal(slide.read_frame(slide.frame).array, right)


def test_of_several_images_the_largest_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    image, small = picture(400, 600), picture(130, 130)
    path = write_pages(tmp_path / "a.tif", (small, {}), (image, {}), (image[::2, ::2].copy(), {}))
    with Slide.open(path) as slide:
        assert [level.shape for level in slide.levels] == [(400, 600), (200, 300)]
        np.testing.assert_array_equal(slide.read_frame(slide.frame).array, image)
        assert sum("has a tiled page of 130 x 130 px that is no level" in doubt for doubt in slide.warnings) == 1


def test_images_beside_one_with_levels_of_its_own_are_named_but_not_labels(tmp_path: Path) -> None:
    image, macro, other = picture(400, 600), picture(90, 200), picture(128, 128)
    described = ome(
        ome_image(200, 90, name="macro image", um=9),
        ome_image(600, 400, um=0.25),
        ome_image(128, 128, name="second", um=0.5),
    )
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path) as tiff:
        options: dict[str, Any] = {"photometric": "rgb"} | TILED
        tiff.write(macro, description=described.encode(), **options)
        tiff.write(image, subifds=1, **options)
        tiff.write(image[::2, ::2].copy(), subfiletype=1, **options)
        tiff.write(other, **options)
    with Slide.open(path) as slide:
        assert slide.properties["sentinode.format"] == "ome-tiff"
        assert [level.shape for level in slide.levels] == [(400, 600), (200, 300)]
        assert slide.mpp == pytest.approx(0.25)  # of this image, not of the first in the description
        assert [doubt for doubt in slide.warnings if "left out" in doubt] == [
            doubt for doubt in slide.warnings if "128 x 128 px" in doubt
        ]
        assert any("128 x 128 px" in doubt for doubt in slide.warnings)


@pytest.mark.parametrize(
    ("channels", "reason"),
    [
        ("", "spread over 3 grey pages of one size (red, green and blue, or channels of fluorescence)"),
        ('<Channel Name="Red"/><Channel Name="Green"/><Channel Name="Blue"/>', "(red, green and blue, or"),
        (
            '<Channel Name="DAPI" EmissionWavelength="461"/><Channel/><Channel/>',
            "is a fluorescence image of 3 channels",
        ),
        ('<Channel Fluor="Cy3"/>', "is a fluorescence image of 3 channels"),
        ('<Channel Name="a" ContrastMethod="Fluorescence"/>', "is a fluorescence image of 3 channels (a)"),
        (
            '<Channel Name="a"/><Channel Name="b"/><Channel Name="c"/>',
            "3 grey pages of one size (channels, or",
        ),
    ],
)
def test_three_grey_pages_are_never_read_as_one(tmp_path: Path, channels: str, reason: str) -> None:
    planes = [np.ascontiguousarray(plane) for plane in np.moveaxis(picture(), 2, 0)]
    described = ome(ome_image(300, 200, channels=channels)).encode()
    path = write_pages(
        tmp_path / "a.ome.tif", (planes[0], {"description": described}), *((one, {}) for one in planes[1:])
    )
    assert reason in refusal(path)


def test_the_three_grey_pages_of_the_report_are_refused(real_data: RealData) -> None:
    assert "3 grey pages of one size (red, green and blue" in refusal(
        real_data("reports/ome_rgb_as_3_grey_pages.ome.tif")
    )


def test_imagej_s_channels_and_stacks_are_refused_by_name(tmp_path: Path) -> None:
    grey = picture()[:, :, 0].copy()
    path = write_pages(
        tmp_path / "a.tif",
        (grey, {"description": IMAGEJ + "channels=3\nmode=color\n"}),
        *[(grey, {})] * 2,
    )
    assert "3 grey pages of one size (red, green and blue" in refusal(path)
    path = write_pages(tmp_path / "b.tif", (picture(), {"description": IMAGEJ + "slices=5\n"}), *[(picture(), {})] * 4)
    assert "is a stack of 5 focal planes (z)" in refusal(path)
    path = write_pages(tmp_path / "c.tif", (picture(), {"description": IMAGEJ + "frames=2\n"}), (picture(), {}))
    assert "is a series of 2 points in time" in refusal(path)


def test_stacks_and_fluorescence_of_ome_are_refused_by_name_at_any_depth(tmp_path: Path) -> None:
    sizes = 'SizeC="3" SizeZ="7" SizeT="1"'
    path = write_pages(
        tmp_path / "a.ome.tif", (picture(), {"description": ome(ome_image(300, 200, sizes=sizes)).encode()})
    )
    assert "is a stack of 7 focal planes (z)" in refusal(path)
    grey = picture()[:, :, 0].astype(np.uint16)
    channels = '<Channel Name="DAPI" Fluor="DAPI"/><Channel Name="CD8"/>'
    path = write_pages(
        tmp_path / "b.ome.tif",
        (grey, {"description": ome(ome_image(300, 200, channels=channels)).encode()}),
        (grey, {}),
    )
    assert "is a fluorescence image of 2 channels (DAPI, CD8)" in refusal(path)
    path = write_pages(tmp_path / "c.tif", (grey, {"description": "<PerkinElmer-QPI-ImageDescription>"}))
    assert "is a fluorescence image of 1 channel" in refusal(path)


def test_grey_samples_that_are_not_said_to_be_colours_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), photometric="minisblack", planarconfig="contig")
    assert "3 samples per pixel that are not said to be red, green and blue" in refusal(path)


def test_strips_are_refused_by_that_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", metadata=None)
    assert "stores its image of 300 x 200 px in strips, not in tiles (export it as a tiled pyramidal TIFF" in refusal(
        path
    )


@pytest.mark.parametrize("code", [6, 34_933, 50_002])
def test_compressions_are_refused_by_their_names(tmp_path: Path, code: int) -> None:
    path = write_tiff(tmp_path / "a.tif", picture())
    with tifffile.TiffFile(path) as file:
        at, order = file.pages.first.tags["Compression"].valueoffset, file.byteorder
    data = bytearray(path.read_bytes())
    data[at : at + 2] = struct.pack(order + "H", code)
    path.write_bytes(data)
    name = {6: "in old-style JPEG", 34_933: "in PNG", 50_002: "in JPEG XL"}[code]
    said = refusal(path)
    assert name in said
    assert f"(compression {code})" in said


def test_a_tile_table_without_strips_or_tiles_is_damage(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", picture())
    drop_tag(path, "TileByteCounts")
    assert "needs 20 values in tag 325" in refusal(path)
