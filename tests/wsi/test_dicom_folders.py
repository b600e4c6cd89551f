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
from wsi.errors import SlideFormatError
from wsi.slide import Slide


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


def test_a_folder_is_a_slide_of_the_command_line(tmp_path: Path) -> None:
    folder = series(tmp_path / "slide", "1.2.3", "a.dcm", "b.dcm")
    done = CliRunner().invoke(app, ["info", str(folder)])
    assert done.exit_code == 0
    assert "256 x 256 px" in done.stdout
    target = tmp_path / "out.tif"
    assert CliRunner().invoke(app, ["convert", str(folder), str(target)]).exit_code == 0
    with Slide.open(target) as slide:
        assert slide.levels[0].shape == (256, 256)
