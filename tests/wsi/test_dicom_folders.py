"""The folder of a DICOM series is a slide."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from dicom_files import write_dicom
from numpy.typing import NDArray
from typer.testing import CliRunner

from staging.cli import app
from staging.cohorts.camelyon import list_slides
from wsi.coverage import stored_coverage
from wsi.errors import SlideFormatError
from wsi.slide import Slide
from wsi.tissue import find_tissue


def jpeg(tile: NDArray[np.uint8]) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(tile, level=90))


def series(folder: Path, number: str, *names: str) -> Path:
    """A slide of as many levels as names, the coarsest first by name."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:256, 0:256]
    image = np.stack([200 - x / 4, 150 - y / 4, 190 - x / 8], axis=-1).astype(np.uint8)
    for power, name in enumerate(reversed(names)):
        small = np.ascontiguousarray(image[:: 2**power, :: 2**power])
        write_dicom(folder / name, small, jpeg, series=number, mm_per_px=0.00025 * 2**power)
    return folder


def test_a_folder_is_the_slide_of_its_files(tmp_path: Path) -> None:
    folder = series(tmp_path / "patient_004_node_1", "1.2.3", "a.dcm", "b.dcm")
    with Slide.open(folder) as slide, Slide.open(folder / "b.dcm") as same:
        assert slide.name == "patient_004_node_1"
        assert [level.shape for level in slide.levels] == [(256, 256), (128, 128)]
        assert slide.mpp == pytest.approx(0.25)
        np.testing.assert_array_equal(slide.read_frame(slide.frame).array, same.read_frame(same.frame).array)
        assert slide.fingerprint() == Slide(folder / "a.dcm").fingerprint()
    with Slide.open(series(tmp_path / "1.2.840.113", "1.2.4", "1.2.840.1", "1.2.840.2")) as slide:
        assert slide.name == "1.2.840.113"
    with Slide.open(series(tmp_path / "node.dcm", "1.2.5", "IM1", "IM2")) as slide:
        assert slide.name == "node"


def test_a_folder_of_several_series_or_none_is_refused(tmp_path: Path) -> None:
    series(tmp_path, "1.2.3", "a.dcm")
    series(tmp_path, "1.2.4", "b.dcm")
    with pytest.raises(SlideFormatError, match=r"2 DICOM series \(name a file of the one wanted: a.dcm, b.dcm\)"):
        Slide.open(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlideFormatError, match="is a directory without DICOM files, not a slide"):
        Slide.open(tmp_path / "empty")


def test_a_cohort_lists_each_series_once(tmp_path: Path) -> None:
    one = series(tmp_path / "patient_000_node_0", "1.2.3", "a.dcm", "b.dcm")
    two = series(tmp_path / "patient_000_node_1", "1.2.4", "1.2.840.1", "1.2.840.2", "IM3")
    several = tmp_path / "together"
    series(several, "1.2.5", "c.dcm", "d.dcm")
    series(several, "1.2.6", "e.dcm", "f.dcm")
    alone = series(tmp_path / "single", "1.2.7", "patient_000_node_2.dcm")
    listing = list_slides(tmp_path)
    assert {slide.name: slide.path for slide in listing.slides} == {
        "patient_000_node_0": one,
        "patient_000_node_1": two,
        "c": several / "c.dcm",
        "e": several / "e.dcm",
        "patient_000_node_2": alone / "patient_000_node_2.dcm",
    }
    assert not listing.skipped
    assert [(slide.patient, slide.node) for slide in listing.slides][2:] == [("patient_000", node) for node in range(3)]
    assert [slide.path for slide in list_slides(one).slides] == [one]


def test_different_pictures_of_one_series_are_refused_each(tmp_path: Path) -> None:
    """Copies keep the Series Instance UID; a slide must not vanish behind another."""
    image = np.full((256, 256, 3), 150, np.uint8)
    for name, pixels in (("patient_000_node_0", image), ("patient_000_node_1", image), ("patient_000_node_2", image)):
        write_dicom(tmp_path / f"{name}.dcm", pixels, jpeg, series="1.2.3")
    assert [slide.name for slide in list_slides(tmp_path).slides] == [f"patient_000_node_{node}" for node in range(3)]
    other = tmp_path / "other"
    other.mkdir()
    write_dicom(other / "a.dcm", image, jpeg, series="1.2.4")
    write_dicom(other / "b.dcm", np.full((256, 128, 3), 150, np.uint8), jpeg, series="1.2.4")
    assert [slide.name for slide in list_slides(other).slides] == ["a", "b"]
    for path in (tmp_path / "patient_000_node_1.dcm", other / "a.dcm", other):
        with pytest.raises(SlideFormatError, match=r"are different pictures \(give each slide its own"):
            Slide.open(path)


def a_section(side: int) -> NDArray[np.uint8]:
    """Textured tissue in the middle of glass."""
    image = np.full((side, side, 3), 244, np.uint8)
    inner = slice(side // 4, 3 * side // 4)
    grain = np.random.default_rng(0).integers(-20, 20, (side // 2, side // 2, 1))
    image[inner, inner] = np.array([170, 110, 170]) + grain
    return image


def test_tissue_that_only_a_coarse_level_shows_was_not_looked_at(tmp_path: Path) -> None:
    """Of 8 x 8 tiles at 8 um the inner 4 x 4 are tissue; four of them are not stored, but a level of 32 um has them."""
    folder = tmp_path / "a"
    folder.mkdir()
    image = a_section(512)
    coarse = image.reshape(128, 4, 128, 4, 3).mean(axis=(1, 3)).astype(np.uint8)
    write_dicom(folder / "0.dcm", image, jpeg, series="1.2.3", mm_per_px=0.008, dropped={18, 19, 26, 27})
    with Slide.open(folder) as slide:
        assert "stores 60 of 64 tiles of its finest level; the others are taken for glass" in slide.warnings
    write_dicom(folder / "1.dcm", coarse, jpeg, series="1.2.3", mm_per_px=0.032)
    with Slide.open(folder) as slide:
        assert len(slide.levels) == 2
        found = stored_coverage(slide, find_tissue(slide), downsample=1.0)
    assert found.tissue_mm2 == pytest.approx(16 * 0.512**2, rel=0.05)
    assert found.share == pytest.approx(12 / 16, abs=0.05)


def test_a_folder_is_a_slide_of_the_command_line(tmp_path: Path) -> None:
    folder = series(tmp_path / "slide", "1.2.3", "a.dcm", "b.dcm")
    done = CliRunner().invoke(app, ["info", str(folder)])
    assert done.exit_code == 0
    assert "256 x 256 px" in done.stdout
    target = tmp_path / "out.tif"
    assert CliRunner().invoke(app, ["convert", str(folder), str(target)]).exit_code == 0
    with Slide.open(target) as slide:
        assert slide.levels[0].shape == (256, 256)
