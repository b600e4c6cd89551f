"""Contours that lie off the tissue, or fit another slide better, are said to; none at all are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from annotations.annotation import Annotation, Role
from annotations.files.asap import write_asap
from staging.cli import app
from staging.errors import CohortError
from staging.training.fit import misfit, share_on
from wsi.geometry import Frame
from wsi.raster import Mask
from wsi.slide import Slide
from wsi.tissue import find_tissue
from wsi.writing.pyramid import write_pyramid

CORNERS = {"patient_000_node_0": 40, "patient_000_node_1": 300}


def square(at: float, side: float) -> Annotation:
    corners = np.array([(at, at), (at + side, at), (at + side, at + side), (at, at + side)], dtype=np.float64)
    return Annotation(name="a", group="metastases", role=Role.TUMOUR, kind="Polygon", vertices=corners)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two slides of a patient, their tissue in opposite corners."""
    (tmp_path / "images").mkdir()
    for name, at in CORNERS.items():
        image = np.full((512, 512, 3), 244, np.uint8)
        image[at : at + 160, at : at + 160] = (170, 110, 160)
        path = tmp_path / "images" / f"{name}.tif"
        write_pyramid(path, width=512, height=512, mpp=8.0, tile_size=512, levels=1, tiles=[image])
    return tmp_path


def patches(cohort: Path, *more: object) -> Result:
    command = ["patches", cohort / "images", "-a", cohort / "drawn", "-o", cohort / "out.parquet", "--mpp", 8]
    command += ["--size", 32, "--tumour", 2, "--normal", 2, "--workers", 1, "--no-contact-sheet", *more]
    return CliRunner().invoke(app, [str(one) for one in command])


def test_the_share_of_an_outline_on_tissue() -> None:
    frame = Frame(x=0, y=0, downsample=2.0, shape=(64, 64), mpp=0.25)
    array = np.zeros((64, 64), bool)
    array[:, :32] = True
    tissue = Mask(frame=frame, array=array)
    assert share_on([square(10, 40)], tissue) == 1.0
    assert share_on([square(44, 40)], tissue) == pytest.approx(0.5, abs=0.03)
    assert share_on([square(90, 20)], tissue) == 0.0
    assert share_on([square(10.1, 1.5)], tissue) == 1.0  # smaller than a pixel of the mask
    assert share_on([], tissue) is None


def test_swapped_annotations_are_said(cohort: Path) -> None:
    first, second = CORNERS
    write_asap(cohort / "drawn" / f"{first}.xml", [square(CORNERS[second] + 20, 80)])
    write_asap(cohort / "drawn" / f"{second}.xml", [square(CORNERS[second] + 20, 80)])
    done = patches(cohort)
    warnings = json.loads(done.stdout)["warnings"]
    assert list(warnings) == [first]
    there = f"100% on that of {second}.tif: the annotations may be swapped"
    assert warnings[first] == [f"only 0% of the outlined tumour lies on tissue, but {there}"]
    assert warnings[first][0] in done.stderr


def test_annotations_swapped_between_patients_are_said(cohort: Path) -> None:
    first, second = CORNERS
    other = "patient_001_node_0"
    (cohort / "images" / f"{second}.tif").rename(cohort / "images" / f"{other}.tif")
    write_asap(cohort / "drawn" / f"{first}.xml", [square(CORNERS[second] + 20, 80)])
    write_asap(cohort / "drawn" / f"{other}.xml", [square(CORNERS[second] + 20, 80)])
    (text,) = json.loads(patches(cohort).stdout)["warnings"][first]
    assert text.endswith("may be of another slide")  # the other's fit it, so that there was no swap
    write_asap(cohort / "drawn" / f"{other}.xml", [square(CORNERS[first] + 20, 80)])
    warnings = json.loads(patches(cohort, "--overwrite").stdout)["warnings"]
    there = "only 0% of the outlined tumour lies on tissue, but 100% on that of {}.tif: the annotations may be swapped"
    assert warnings == {first: [there.format(other)], other: [there.format(first)]}


def test_contours_off_the_tissue_are_said(cohort: Path) -> None:
    name = next(iter(CORNERS))
    path = cohort / "images" / f"{name}.tif"
    with Slide.open(path) as slide:
        share = share_on([square(420, 60)], find_tissue(slide))
    assert "may be of another slide" in str(misfit([square(420, 60)], share, []))
    assert misfit([square(60, 60)], 0.95, [path]) is None
    assert misfit([], None, [path]) is None


def test_no_contour_at_all_is_refused_unless_none_is_wanted(cohort: Path) -> None:
    (cohort / "drawn").mkdir()
    (cohort / "labels.csv").write_text("slide,label\n" + "".join(f"{name},negative\n" for name in CORNERS))
    done = patches(cohort, "-r", cohort / "labels.csv")
    assert isinstance(done.exception, CohortError)
    assert "annotations for none of the slides" in str(done.exception)
    assert patches(cohort, "-r", cohort / "labels.csv", "--tumour", 0).exit_code == 0
