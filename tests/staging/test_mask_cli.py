"""``sentinode mask``: which masks come out, what is said of them, and how mistakes end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import typer
from slide_files import picture
from typer.testing import CliRunner, Result

from annotations.annotation import Annotation, Role
from annotations.errors import (
    AnnotationNotFoundError,
    EmptyFileError,
    GroupMapError,
    MissingRoleError,
    OutsideSlideError,
    UnknownGroupError,
)
from annotations.files.asap import write_asap
from annotations.painting import Painting
from staging.commands.mask import mask
from staging.errors import ConfigurationError
from wsi.errors import (
    OutputExistsError,
    OutputNameError,
    PathologyError,
    ResolutionError,
    SlideError,
    SlideNotFoundError,
    StorageError,
)
from wsi.geometry import Frame
from wsi.writing.pyramid import write_pyramid

SIZE = ("--slide-size", 400, 300, "--slide-mpp", 0.5)


def run(*arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("mask")(mask)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(result: Result) -> list[dict[str, Any]]:
    assert not isinstance(result.exception, PathologyError), result.exception
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def error_of(result: Result, kind: type[PathologyError]) -> str:
    assert isinstance(result.exception, kind), (result.exception, result.output)
    return str(result.exception)


def outline(group: str, left: float, top: float, side: float) -> Annotation:
    corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]
    return Annotation(
        name=group, group=group, role=Role.TUMOUR, kind="Polygon", vertices=np.array(corners, dtype=float)
    )


def contours(folder: Path, name: str = "tumor_001", *groups: str) -> Path:
    """Squares of 100, 60, 20 px in each other, in groups of these names."""
    path = folder / f"{name}.xml"
    drawn = [
        outline(group, 50 + 20 * n, 40 + 20 * n, 100 - 40 * n) for n, group in enumerate(groups or ("Tumor", "normal"))
    ]
    write_asap(path, drawn)
    return path


def slide_at(path: Path, *, width: int = 400, height: int = 300, mpp: float | None = 0.5) -> Path:
    tile = picture(64, 64)
    count = -(-width // 64) * -(-height // 64)
    write_pyramid(path, width=width, height=height, mpp=mpp, tiles=[tile] * count, tile_size=64, levels=3)
    return path


def pixels(path: Path) -> np.ndarray[Any, Any]:
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[0].aspage().asarray()


def test_a_mask_without_a_slide(tmp_path: Path) -> None:
    target = tmp_path / "new" / "mask.tif"
    (said,) = told(run(contours(tmp_path), *SIZE, "-o", target))
    expected = np.zeros((300, 400), dtype=np.uint8)
    expected[40:140, 50:150] = 255
    expected[60:120, 70:130] = 0
    np.testing.assert_array_equal(pixels(target), expected)
    assert said == {
        "mask": str(target),
        "annotations": str(tmp_path / "tumor_001.xml"),
        "size": [400, 300],
        "mpp": 0.5,
        "values": "0/255",
        "reduce": "centre",
        "tumour_px": 6400,
        "tumour_mm2": 0.0016,
        "warnings": [],
    }


def test_the_area_is_that_of_the_outlines_on_any_grid(tmp_path: Path) -> None:
    for mpp in ("0.5", "7", "13"):
        (said,) = told(run(contours(tmp_path), *SIZE, "--mpp", mpp, "-o", tmp_path / f"{mpp}.tif"))
        assert said["tumour_mm2"] == 0.0016


def test_outlines_that_a_grid_misses_are_named(tmp_path: Path) -> None:
    source = tmp_path / "tumor_001.xml"
    write_asap(source, [outline("Tumor", 50, 40, 60), outline("_0", 201, 202, 3)])
    (said,) = told(run(source, *SIZE, "--mpp", 8, "-o", tmp_path / "a.tif"))
    (warning,) = said["warnings"]
    assert "1 of its outlines hold no pixel's centre" in warning
    assert "_0" in warning
    (said,) = told(run(source, *SIZE, "--mpp", 8, "--reduce", "max", "-o", tmp_path / "b.tif"))
    assert (said["warnings"], said["reduce"]) == ([], "max")
    write_asap(source, [outline("_0", 201, 202, 3)])
    blank = run(source, *SIZE, "--mpp", 8, "-o", tmp_path / "c.tif")
    assert blank.exit_code == 1
    assert "would be blank" in str(blank.exception)
    assert not (tmp_path / "c.tif").exists()
    (said,) = told(run(source, *SIZE, "--mpp", 8, "--allow-empty", "-o", tmp_path / "c.tif"))
    assert said["tumour_px"] == 0


@pytest.mark.parametrize(("values", "found"), [("0/255", {0, 255}), ("asap", {0, 1, 2}), ("0/1", {0, 1})])
def test_values_and_tiles(tmp_path: Path, values: str, found: set[int]) -> None:
    target = tmp_path / "mask.tif"
    options = ("--values", values, "--tile-size", 64, "--compression", "zstd")
    told(run(contours(tmp_path), *SIZE, *options, "-o", target))
    assert set(np.unique(pixels(target)).tolist()) == found
    with tifffile.TiffFile(target) as tiff:
        page = tiff.pages[0].aspage()
        assert (page.tilewidth, int(page.compression)) == (64, 50_000)


@pytest.mark.parametrize("reduce", ["max", "centre"])
def test_the_grid_of_a_level_and_of_a_resolution(tmp_path: Path, reduce: Any) -> None:
    source, slide, target = contours(tmp_path), slide_at(tmp_path / "slide.tif", width=403), tmp_path / "mask.tif"
    drawn = [outline("Tumor", 50, 40, 100), outline("normal", 70, 60, 60)]
    painting = Painting.of([drawn[0], Annotation(**{**_fields(drawn[1]), "role": Role.CUT_OUT})])
    (said,) = told(run(source, "--slide", slide, "--level", 2, "--reduce", reduce, "-o", target))
    assert said["size"] == [101, 75]
    assert said["mpp"] == pytest.approx(2.0, rel=0.01)
    frame = Frame(x=0, y=0, downsample=said["mpp"] / 0.5, shape=(75, 101), mpp=0.5)
    np.testing.assert_array_equal(pixels(target) == 255, painting.mask(frame, reduce=reduce).array)
    (said,) = told(run(source, "--slide", slide, "--mpp", 1.7, "--reduce", reduce, "-o", target, "--overwrite"))
    assert (said["size"], said["mpp"]) == ([119, 89], 1.7)
    frame = Frame(x=0, y=0, downsample=3.4, shape=(89, 119), mpp=0.5)
    np.testing.assert_array_equal(pixels(target) == 255, painting.mask(frame, reduce=reduce).array)
    again = (source, "--slide-size", 403, 300, "--slide-mpp", 0.5, "--mpp", 1.7, "--reduce", reduce)
    (same,) = told(run(*again, "-o", target, "--overwrite"))
    assert {**same, "mask": None} == {**said, "mask": None}


def _fields(one: Annotation) -> dict[str, Any]:
    return {"name": one.name, "group": one.group, "kind": one.kind, "vertices": one.vertices}


@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_file_does_not_stop_the_others(tmp_path: Path, workers: int) -> None:
    for folder in ("slides", "xml"):
        (tmp_path / folder).mkdir()
    for name in ("Tumor_001", "tumor_002", "tumor_004"):
        slide_at(tmp_path / "slides" / f"{name}.tif")
    for name in ("tumor_001", "tumor_003", "tumor_004"):
        contours(tmp_path / "xml", name)
    (tmp_path / "xml" / "tumor_002.xml").write_bytes(b"")
    pattern = tmp_path / "xml" / "*.xml"
    result = run(pattern, "--slides", tmp_path / "slides", "-o", tmp_path / "masks", "--workers", workers)
    assert result.exit_code == 3
    assert sorted(Path(said["mask"]).name for said in told(result)) == ["tumor_001_mask.tif", "tumor_004_mask.tif"]
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["tumor_001_mask.tif", "tumor_004_mask.tif"]
    failures = [line for line in result.stderr.splitlines() if line.startswith("sentinode: error: ")]
    assert len(failures) == 2
    assert any("tumor_002.xml" in line and "empty" in line for line in failures)
    assert any("tumor_003.xml" in line and "no slide" in line for line in failures)
    (tmp_path / "xml" / ".DS_Store").write_bytes(b"x")
    whole = ("--slides", tmp_path / "slides", "-o", tmp_path / "masks", "--workers", workers, "--overwrite")
    again = run(tmp_path / "xml", *whole)
    assert (again.exit_code, sorted(again.stdout.splitlines())) == (3, sorted(result.stdout.splitlines()))
    assert "is a folder without annotations" in str(run(tmp_path / "slides", *whole).exception)


def test_when_all_files_are_bad_the_exit_code_says_so(tmp_path: Path) -> None:
    result = run(tmp_path / "a.xml", tmp_path / "b.xml", *SIZE, "-o", tmp_path / "masks", "--workers", 1)
    assert result.exit_code == 1
    assert result.stderr.count("there is no annotation file") == 2


def test_group_maps(tmp_path: Path) -> None:
    source, target = contours(tmp_path, "a", "Lesion A", "hole"), tmp_path / "mask.tif"
    assert "Lesion A" in error_of(run(source, *SIZE, "-o", target), UnknownGroupError)
    groups = tmp_path / "groups.toml"
    groups.write_text('[groups]\n"lesion a" = "tumour"\nhole = "cut out"\n')
    (said,) = told(run(source, *SIZE, "--groups", groups, "-o", target))
    assert said["tumour_px"] == 6400
    assert told(run(contours(tmp_path, "b", "_0", "_2"), *SIZE, "--groups", "camelyon16", "-o", tmp_path / "b.tif"))
    assert "camelyon17" in error_of(
        run(source, *SIZE, "--groups", "camelyon18", "-o", tmp_path / "c.tif"), GroupMapError
    )


def test_no_tumour_is_an_error_unless_allowed(tmp_path: Path) -> None:
    source, target = contours(tmp_path, "a", "normal"), tmp_path / "mask.tif"
    assert "normal" in error_of(run(source, *SIZE, "-o", target), MissingRoleError)
    assert not target.exists()
    (said,) = told(run(source, *SIZE, "--allow-empty", "-o", target))
    assert said["tumour_px"] == 0
    assert not pixels(target).any()


def test_bad_inputs_of_one_mask(tmp_path: Path) -> None:
    target, good = tmp_path / "mask.tif", contours(tmp_path)
    error_of(run(tmp_path / "none.xml", *SIZE, "-o", target), AnnotationNotFoundError)
    (tmp_path / "empty.xml").write_bytes(b" \n")
    error_of(run(tmp_path / "empty.xml", *SIZE, "-o", target), EmptyFileError)
    small = ("--slide-size", 60, 60, "--slide-mpp", 0.5)
    assert "tumor_001.xml" in error_of(run(good, *small, "-o", target), OutsideSlideError)
    slide = slide_at(tmp_path / "slide.tif", mpp=None)
    error_of(run(good, "--slide", slide, "--mpp", 2, "-o", target), ResolutionError)
    assert "0 to 2" in error_of(run(good, "--slide", slide, "--level", 3, "-o", target), SlideError)
    error_of(run(good, "--slide", tmp_path / "none.tif", "-o", target), SlideError)
    (tmp_path / "file").write_text("x")
    error_of(run(good, *SIZE, "-o", tmp_path / "file" / "mask.tif"), StorageError)
    assert not target.exists()
    (said,) = told(run(good, "--slide", slide, "-o", target))
    assert (said["mpp"], said["tumour_mm2"], said["tumour_px"]) == (None, None, 6400)
    (said,) = told(run(good, "--slide", slide, "--slide-mpp", 0.25, "-o", target, "--overwrite"))
    assert said["mpp"] == 0.25
    (tmp_path / "slides").mkdir()
    slide_at(tmp_path / "slides" / "other.tif")
    error_of(run(good, "--slides", tmp_path / "slides", "-o", tmp_path / "other.tif"), SlideNotFoundError)


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        (*SIZE, "--slide", "a.tif"),
        ("--slide-size", 0, 10, "--slide-mpp", 0.5),
        ("--slide-size", 10, 5_000_000, "--slide-mpp", 0.5),
        ("--slide-size", 400, 300),
        (*SIZE, "--level", 1),
        ("--slide", "a.tif", "--level", 1, "--mpp", 1),
        (*SIZE, "--tile-size", 100),
    ],
)
def test_options_that_contradict_each_other_touch_nothing(tmp_path: Path, wrong: tuple[object, ...]) -> None:
    error_of(run(contours(tmp_path), *wrong, "-o", tmp_path / "out" / "mask.tif"), ConfigurationError)
    assert [path.name for path in tmp_path.iterdir()] == ["tumor_001.xml"]


def test_outputs_that_would_collide_touch_nothing(tmp_path: Path) -> None:
    first, second = contours(tmp_path, "a"), contours(tmp_path, "b")
    (tmp_path / "more").mkdir()
    twin = contours(tmp_path / "more", "A")
    before = {path: path.read_bytes() for path in (first, second, twin)}
    error_of(run(first, second, *SIZE, "-o", tmp_path / "mask.tif"), ConfigurationError)
    error_of(run(first, twin, *SIZE, "-o", tmp_path / "masks"), ConfigurationError)
    error_of(run(first, *SIZE, "-o", second), OutputNameError)
    error_of(run(tmp_path / "*.none", *SIZE, "-o", tmp_path / "masks"), ConfigurationError)
    slide = slide_at(tmp_path / "slide.tif")
    error_of(run(first, "--slide", slide, "-o", slide, "--overwrite"), OutputExistsError)
    error_of(run(first, second, "--slide", slide, "-o", tmp_path / "masks"), ConfigurationError)
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "masks").exists()


def test_real_contours(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    source = real_data("annotations/camelyon17/patient_004_node_4.xml")
    size = ("--slide-size", 97_792, 221_184, "--slide-mpp", 0.25)
    (said,) = told(run(source, *size, "-o", tmp_path, "--values", "asap"))
    assert said["mask"].endswith("patient_004_node_4_mask.tif")
    assert said["tumour_px"] == pytest.approx(252_947, rel=1e-3)
