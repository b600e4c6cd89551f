"""What is believed of a file's resolution, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from slide_files import drop_tag, picture, write_tiff

from wsi.errors import ResolutionError
from wsi.readers.openslide import OpenSlideReader
from wsi.readers.resolution import OverridingMpp, settle
from wsi.slide import Slide

CENTIMETRES: dict[str, Any] = {"resolutionunit": "CENTIMETER"}
APERIO = "Aperio Image|AppMag = 20|MPP = 0.25"


def opened(path: Path, **options: Any) -> tuple[float | None, str]:
    with Slide.open(path, **options) as slide:
        return slide.mpp, "\n".join(slide.warnings)


def test_a_lost_unit_is_not_taken_for_the_inch(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), resolution=(1250, 1250), **CENTIMETRES)
    assert opened(path) == (8.0, "")
    drop_tag(path, "ResolutionUnit")
    mpp, said = opened(path)
    assert mpp is None
    assert "1250 px per unit but not the unit: 8 um per px if it is the centimetre, 20.32 if it is the inch" in said
    assert opened(path, mpp=8.0) == (8.0, "")


def test_a_unit_of_none_is_a_lost_unit_too(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), resolution=(40_000, 40_000), resolutionunit="NONE")
    mpp, said = opened(path)
    assert mpp is None
    assert "not the unit: 0.25 um per px" in said


def test_openslide_does_not_guess_the_unit_either(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), resolution=(40_000, 40_000), **CENTIMETRES)
    drop_tag(path, "ResolutionUnit")
    reader = OpenSlideReader.open(path, path.read_bytes()[:16], on_bad_tile="raise")
    assert reader is not None
    assert reader.mpp is None
    assert "not the unit" in reader.mpp_warnings[0]


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": (1250, 1250), "resolutionunit": "INCH"},
        {"resolution": (72, 72), "resolutionunit": "INCH"},
        {"description": "Aperio Image|MPP = 0.0999"},
        {"description": "Aperio Image|MPP = 20.1"},
    ],
    ids=str,
)
def test_what_no_scanner_makes_is_ignored_with_its_value(tmp_path: Path, options: dict[str, Any]) -> None:
    mpp, said = opened(write_tiff(tmp_path / "a.tif", picture(), **options))
    assert mpp is None
    assert "not within 0.1 to 20, so it is ignored; give the right value with --slide-mpp" in said


def test_axes_that_differ(tmp_path: Path) -> None:
    def read(y: int) -> tuple[float | None, str]:
        return opened(write_tiff(tmp_path / "a.tif", picture(), resolution=(40_000, y), **CENTIMETRES))

    assert read(40_300)[1] == ""
    mpp, said = read(42_000)
    assert mpp == pytest.approx(0.24405, abs=1e-5)
    assert "0.25 um per px along x and 0.2381 along y; their mean is used" in said
    mpp, said = read(45_000)
    assert mpp is None
    assert "0.25 um per px along x and 0.2222 along y, which differ by more than 10 %" in said


def test_statements_that_contradict_each_other_are_both_named(tmp_path: Path) -> None:
    def read(px_per_cm: int) -> tuple[float | None, str]:
        options = {"description": APERIO, "resolution": (px_per_cm, px_per_cm), **CENTIMETRES}
        return opened(write_tiff(tmp_path / "a.svs", picture(), **options))

    assert read(40_000) == (0.25, "")
    assert read(28) == (0.25, "")  # 72 dpi state nothing
    mpp, said = read(15_748)
    assert mpp == 0.25
    assert "0.25 um per px in its description but 0.635 in its resolution tags" in said


def test_a_given_resolution_that_differs_from_the_file_is_said(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.svs", picture(), description=APERIO)
    assert opened(path, mpp=0.25) == (0.25, "")
    assert opened(path, mpp=OverridingMpp(0.5)) == (0.5, "states 0.25 um per px; the given 0.5 are used instead")
    told = "states 0.25 um per px, which are used; the given 0.5 are not (--override-mpp would)"
    assert opened(path, mpp=0.5) == (0.25, told)


def test_a_given_resolution_fills_in_where_the_file_states_none(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", picture())
    assert opened(path, mpp=0.5) == (0.5, "")
    assert opened(path, mpp=OverridingMpp(0.5)) == (0.5, "")
    dropped = write_tiff(tmp_path / "b.tif", picture(), resolution=(72, 72), resolutionunit="INCH")
    assert opened(dropped, mpp=0.5) == (0.5, "")


def test_what_needs_um_says_why_there_are_none(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), resolution=(72, 72), resolutionunit="INCH")
    with Slide.open(path) as slide, pytest.raises(ResolutionError, match=r"states 352\.8 um per px, not within"):
        slide.read_at(4.0)
    path = write_tiff(tmp_path / "b.tif", picture())
    with Slide.open(path) as slide, pytest.raises(ResolutionError, match="does not say how large its pixels are"):
        slide.read_at(4.0)


def test_equal_axes_are_believed_without_a_word() -> None:
    assert settle(0.25, 0.25).warnings == ()
    assert settle(0.25, 0.2501).mpp == pytest.approx(0.25005)


@pytest.mark.parametrize("written", ["0.2500", "0,2500", " 0,25 ", "2,5e-1"])
def test_aperio_s_mpp_may_have_a_decimal_comma(tmp_path: Path, written: str) -> None:
    description = f"Aperio Image Library v12|AppMag = 40|MPP = {written}|Left = 1,5"
    mpp, said = opened(write_tiff(tmp_path / "a.svs", picture(), description=description))
    assert mpp == pytest.approx(0.25)
    assert not said


@pytest.mark.parametrize("written", ["", "0.25.1", "0,25,1", "-0.25", "nan", "1_0", "0x1", ",25"])
def test_what_is_no_number_is_no_mpp(tmp_path: Path, written: str) -> None:
    path = write_tiff(tmp_path / "a.svs", picture(), description=f"Aperio Image Library v12|MPP = {written}|Left = 1")
    assert opened(path)[0] is None


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        ("pm", 1e-6),
        ("Å", 1e-4),
        ("\u212b", 1e-4),
        ("nm", 1e-3),
        ("µm", 1),
        ("μm", 1),
        ("mm", 1e3),
        ("cm", 1e4),
        ("m", 1e6),
        ("thou", 25.4),
        ("mil", 25.4),
        ("pt", 352.777_778),
        ("in", 25_400),
        ("inch", 25_400),
    ],
)
def test_every_unit_of_ome_that_is_a_length(tmp_path: Path, unit: str, um: float) -> None:
    # 2016-06 of the schema names inch "in" and mil "thou"
    size = "".join(f'PhysicalSize{axis}="{0.5 / um!r}" PhysicalSize{axis}Unit="{unit}" ' for axis in "XY")
    description = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image><Pixels SizeX="300" SizeY="200" {size}/></Image></OME>'
    )
    mpp, _ = opened(write_tiff(tmp_path / "a.ome.tif", picture(), description=description.encode()))
    assert mpp == pytest.approx(0.5)


@pytest.mark.parametrize("unit", ["pixel", "reference frame", "furlong"])
def test_what_is_no_length_is_no_resolution(tmp_path: Path, unit: str) -> None:
    size = "".join(f'PhysicalSize{axis}="0.5" PhysicalSize{axis}Unit="{unit}" ' for axis in "XY")
    description = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image><Pixels SizeX="300" SizeY="200" {size}/></Image></OME>'
    )
    assert opened(write_tiff(tmp_path / "a.ome.tif", picture(), description=description.encode()))[0] is None
