"""What commands say about slides in doubt and about what they passed over: on stderr, in JSON and in a run's files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from slide_files import drop_tag, picture, write_tiff
from typer.testing import CliRunner, Result

from staging.cli import app
from staging.cohorts.camelyon import find_slides
from staging.cohorts.slide_warnings import find_warnings, warning_lines, warning_table
from staging.phantom.cohort import generate_cohort
from wsi.cnn.checkpoint import save_checkpoint


def called(*arguments: object) -> tuple[Result, dict[str, Any]]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    lines = result.stdout.splitlines()
    return result, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


def absurd(path: Path) -> Path:
    return write_tiff(path, picture(), resolution=(72, 72), resolutionunit="INCH")


def test_info_says_what_is_doubtful(tmp_path: Path) -> None:
    result, facts = called("info", absurd(tmp_path / "a.tif"), "--json")
    assert result.exit_code == 0
    assert "a.tif: states 352.8 um per px, not within 0.1 to 20" in result.stderr
    assert facts["mpp"] is None
    assert facts["warnings"][0].startswith("states 352.8 um per px")


def test_convert_says_what_is_doubtful(tmp_path: Path) -> None:
    result, facts = called("convert", absurd(tmp_path / "a.tif"), tmp_path / "b.tif")
    assert result.exit_code == 0
    assert result.stderr.count("states 352.8 um per px") == 1
    assert len(facts["warnings"]) == 1
    result, facts = called("convert", tmp_path / "a.tif", tmp_path / "c.tif", "--override-mpp", 0.5)
    assert facts["warnings"] == []


SQUARE = """<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58">
<Coordinates>{}</Coordinates></Annotation></Annotations><AnnotationGroups/></ASAP_Annotations>"""


def test_a_mask_says_what_is_doubtful_about_its_slide(tmp_path: Path) -> None:
    corners = [(20, 20), (90, 20), (90, 90), (20, 90)]
    points = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(corners))
    (tmp_path / "a.xml").write_text(SQUARE.format(points))
    result, facts = called("mask", tmp_path / "a.xml", "--slide", absurd(tmp_path / "a.tif"), "-o", tmp_path / "m.tif")
    assert result.exit_code == 0
    assert "a.tif: states 352.8 um per px" in result.stderr
    assert len(facts["warnings"]) == 1


def test_equal_warnings_of_a_cohort_are_one_line(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        absurd(tmp_path / name)
    write_tiff(tmp_path / "c.tif", picture(), resolution=(40_000, 40_000), resolutionunit="CENTIMETER")
    (tmp_path / "d.tif").write_bytes(b"nothing")
    warnings = find_warnings(find_slides(tmp_path))
    assert sorted(warnings) == ["a", "b"]
    (line,) = warning_lines(warnings)
    assert line.startswith("a, b: states 352.8 um per px")
    assert warning_table(warnings).count("states 352.8 um per px") == 2
    assert find_warnings(find_slides(tmp_path), mpp=0.25) == {}


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    generate_cohort(folder, patients=1, centres=(0,), seed=11, mpp=8.0, workers=1)
    return folder / "images" / "patient_000_node_0.tif"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Any]) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_checkpoint(path, make_checkpoint(mpp=8.0, seed=3))
    return path


@pytest.mark.slow
def test_tissue_and_heatmap_say_what_is_doubtful(slide: Path, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / slide.name
    shutil.copy(slide, copy)
    for command in (
        ["tissue", copy, "-o", tmp_path / "t.png"],
        ["heatmap", copy, "-o", tmp_path / "h.zarr", "-m", model],
    ):
        result, facts = called(*command, "--override-mpp", 8.5)
        assert result.exit_code == 0, result.stderr
        assert result.stderr.count("states 7.776 um per px; the given 8.5 are used instead") == 1
        assert facts["warnings"] == ["states 7.776 um per px; the given 8.5 are used instead"]


@pytest.mark.slow
def test_a_run_records_what_is_doubtful_and_passed_over(slide: Path, model: Path, tmp_path: Path) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    shutil.copy(slide, images)
    (images / "._patient_000_node_0.tif").write_bytes(b"x")
    (images / "notes.txt").write_text("x")
    command = ("run", images, "-o", output, "-m", model, "--override-mpp", "8.5", "--nodes", 1, "--workers", 1)
    result, facts = called(*command)
    assert result.exit_code == 0, result.stderr
    said = "states 7.776 um per px; the given 8.5 are used instead"
    assert result.stderr.count(f"patient_000_node_0: {said}") == 1
    assert "1 hidden (._patient_000_node_0.tif); 1 of unknown suffix (notes.txt)" in result.stderr
    assert facts["warnings"] == {"patient_000_node_0": [said]}
    assert facts["skipped"]["hidden"] == {"count": 1, "names": "._patient_000_node_0.tif"}
    assert f"patient_000_node_0,{said}" in (output / "warnings.csv").read_text()
    assert "notes.txt,of unknown suffix" in (output / "skipped.csv").read_text()
    report = (output / "report.html").read_text()
    assert said in report
    assert "1 of unknown suffix (notes.txt)" in report
    assert called(*command)[1] == facts  # the next call reads it from the record


@pytest.mark.slow
def test_a_quarantined_slide_has_its_warnings_in_the_reason(slide: Path, model: Path, tmp_path: Path) -> None:
    lost = tmp_path / "patient_000_node_0.tif"
    with tifffile.TiffFile(slide) as file:
        pixels = file.pages.first.asarray()
    options: dict[str, Any] = {
        "tile": (256, 256),
        "metadata": None,
        "resolution": (1250, 1250),
        "resolutionunit": "CENTIMETER",
    }
    tifffile.imwrite(lost, pixels, photometric="rgb", **options)
    drop_tag(lost, "ResolutionUnit")
    grey = tmp_path / "patient_000_node_1.tif"
    tifffile.imwrite(grey, np.full((512, 512), 240, np.uint8), photometric="minisblack", **options)
    result, facts = called("run", lost, grey, "-o", tmp_path / "out", "-m", model, "--workers", 1)
    assert result.exit_code == 3
    assert "8 um per px if it is the centimetre" in facts["quarantined"]["patient_000_node_0"]
    assert facts["quarantined"]["patient_000_node_0"].count("not the unit") == 1
    assert "no tissue was found" in facts["quarantined"]["patient_000_node_1"]
    assert "is grey: " in facts["quarantined"]["patient_000_node_1"]
