"""The ICC profile of a slide: kept by convert, applied on demand, named by info."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from dicom_files import write_dicom
from PIL import Image as Pillow
from PIL import ImageCms
from slide_files import picture, windows, write_tiff
from typer.testing import CliRunner

from staging.cli import app
from wsi.errors import SlideFormatError
from wsi.geometry import Region
from wsi.slide import Slide
from wsi.writing.convert import convert_slide
from wsi.writing.sparse import write_sparse

RealData = Callable[[str], Path]
TAG = 34_675


def profile(*, gamma: float = 1.0, swapped: bool = False) -> bytes:
    """A profile of RGB whose tables of tones are a power, and whose red and blue are exchanged on demand."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(data[at : at + 4]): (at, int.from_bytes(data[at + 4 : at + 8], "big"))
        for at in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)
    }
    curve = b"curv\0\0\0\0\0\0\0\1" + round(gamma * 256).to_bytes(2, "big") + bytes(2)
    start = len(data)
    data += curve
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        at = tags[name][0]
        data[at + 4 : at + 12] = start.to_bytes(4, "big") + (14).to_bytes(4, "big")
    if swapped:
        red, blue = tags[b"rXYZ"][0], tags[b"bXYZ"][0]
        data[red + 4 : red + 12], data[blue + 4 : blue + 12] = data[blue + 4 : blue + 12], data[red + 4 : red + 12]
    data[0:4] = len(data).to_bytes(4, "big")
    return bytes(data)


LINEAR = profile()


def to_srgb(linear: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """IEC 61966-2-1, from light in proportion to the values."""
    light = linear / 255.0
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def profiles(path: Path) -> list[bytes | None]:
    with tifffile.TiffFile(path) as tiff:
        pages = [page.aspage() for page in tiff.pages]
        return [page.tags[TAG].value if TAG in page.tags else None for page in pages if page.is_tiled]


def write_pyramid(path: Path, *icc: bytes | None, **options: Any) -> Path:
    """A level for each profile."""
    image = picture(512, 512)
    with tifffile.TiffWriter(path) as tiff:
        for power, one in enumerate(icc):
            small = np.ascontiguousarray(image[:: 2**power, :: 2**power])
            tiff.write(small, tile=(64, 64), photometric="rgb", iccprofile=one, metadata=None, **options)
    return path


def test_pixels_are_shown_in_srgb_on_demand(tmp_path: Path) -> None:
    image = picture()
    path = write_tiff(tmp_path / "a.tif", image, iccprofile=LINEAR)
    with Slide.open(path) as slide:
        region = Region(x=0, y=0, width=300, height=200)
        np.testing.assert_array_equal(slide.read(region).array, image)
        out = np.empty((200, 300, 3), np.uint8)
        shown = slide.read(region, colour="srgb", out=out).array
        assert shown is out
        assert np.abs(shown - to_srgb(image)).max() <= 2
        again = Pillow.fromarray(image)
        own = ImageCms.getOpenProfile(BytesIO(LINEAR))
        oracle = ImageCms.profileToProfile(again, own, ImageCms.createProfile("sRGB"))
        np.testing.assert_array_equal(shown, np.asarray(oracle))
        with pytest.raises(ValueError, match="colour must be 'stored' or 'srgb'"):
            slide.read(region, colour="adobe")  # type: ignore[arg-type]


def test_each_level_has_its_own_profile_and_none_leaves_the_pixels(tmp_path: Path) -> None:
    swapped = profile(swapped=True)
    path = write_pyramid(tmp_path / "a.tif", LINEAR, None, swapped)
    with Slide.open(path) as slide:
        found = [slide.profile(level) for level in range(3)]
        assert [one and one.data for one in found] == [LINEAR, None, swapped]
        region = Region(x=0, y=0, width=512, height=512)
        np.testing.assert_array_equal(slide.read(region, 1, colour="srgb").array, slide.read(region, 1).array)
        shown, stored = (slide.read(region, 2, colour=way).array for way in ("srgb", "stored"))
        assert np.abs(shown - to_srgb(stored[:, :, ::-1])).max() <= 2


def test_a_damaged_profile_is_an_error_where_it_is_needed_only(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), iccprofile=b"no profile at all")
    with Slide.open(path) as slide:
        region = Region(x=0, y=0, width=10, height=10)
        slide.read(region)
        with pytest.raises(SlideFormatError, match=r'a\.tif: has an ICC profile that cannot be.*colour="stored"'):
            slide.read(region, colour="srgb")
        own = slide.profile()
        assert own is not None
        assert own.name == "unreadable"
    done = CliRunner().invoke(app, ["info", str(path), "--json"])
    assert json.loads(done.stdout)["colour_profile"] == {"name": "unreadable", "bytes": 17}


def test_pictures_and_dicom_have_profiles(tmp_path: Path) -> None:
    image = picture(128, 128)
    Pillow.fromarray(image).save(tmp_path / "a.png", icc_profile=LINEAR)
    Pillow.fromarray(image).save(tmp_path / "b.png")
    write_dicom(tmp_path / "c.dcm", image, lambda tile: bytes(imagecodecs.jpeg8_encode(tile)), profile=LINEAR)
    for name, has_one in (("a.png", True), ("b.png", False), ("c.dcm", True)):
        with Slide.open(tmp_path / name) as slide:
            assert (slide.profile() is not None) is has_one
            stored, shown = (slide.read(slide.frame.region, colour=way).array for way in ("stored", "srgb"))
        assert np.abs(shown - (to_srgb(stored) if has_one else stored)).max() <= 2


def test_a_damaged_profile_in_dicom_is_left_out_and_said(tmp_path: Path) -> None:
    encode = lambda tile: bytes(imagecodecs.jpeg8_encode(tile))  # noqa: E731
    path = write_dicom(tmp_path / "c.dcm", picture(128, 128), encode, profile=bytes(200))
    with Slide.open(path) as slide:
        assert slide.profile() is None
        assert "has an ICC profile that cannot be read; it is left out" in "".join(slide.warnings)


@pytest.mark.parametrize("compression", ["jpeg", "lzw"])
@pytest.mark.parametrize("reencode", [False, True])
def test_convert_keeps_the_profile_of_every_level(tmp_path: Path, compression: str, *, reencode: bool) -> None:
    second = profile(gamma=1.8)
    source = write_pyramid(tmp_path / "a.tif", LINEAR, second, compression=compression)
    with Slide.open(source) as slide:
        convert_slide(slide, tmp_path / "b.tif", tile_size=64, reencode=reencode)
        write_sparse(slide, tmp_path / "c.tif", {0: windows((0, 0, 10, 10))})
        convert_slide(slide, tmp_path / "d.tif", tile_size=64, quality=90)
    is_copied = compression == "jpeg" and not reencode
    expected = [LINEAR, *[second if is_copied else LINEAR] * 3]  # what is made anew is made from level 0
    assert profiles(tmp_path / "b.tif") == expected
    assert profiles(tmp_path / "c.tif") == [LINEAR, second]
    # stored once however many levels have it
    assert (tmp_path / "b.tif").read_bytes().count(LINEAR) == 1
    with Slide.open(tmp_path / "b.tif") as slide:
        own = slide.profile(1)
        assert own is not None
        assert own.data == expected[1]


def test_convert_adds_no_profile_where_there_is_none(tmp_path: Path) -> None:
    with Slide.open(write_pyramid(tmp_path / "a.tif", None, LINEAR, compression="jpeg")) as slide:
        convert_slide(slide, tmp_path / "b.tif", tile_size=64)
    assert profiles(tmp_path / "b.tif") == [None, *[LINEAR] * 3]


def test_the_profile_of_the_report_is_kept_and_named(real_data: RealData, tmp_path: Path) -> None:
    path, target = real_data("reports/svs_icc.svs"), tmp_path / "out.tif"
    (original, *_) = profiles(path)
    assert original is not None
    assert len(original) == 588
    assert CliRunner().invoke(app, ["convert", str(path), str(target)]).exit_code == 0
    kept = profiles(target)
    assert len(kept) >= 2
    assert set(kept) == {original}
    done = CliRunner().invoke(app, ["info", str(path)])
    assert "colours     ICC profile: sRGB built-in (588 bytes)" in done.stdout
    facts = json.loads(CliRunner().invoke(app, ["info", str(target), "--json"]).stdout)
    assert facts["colour_profile"] == {"name": "sRGB built-in", "bytes": 588}
