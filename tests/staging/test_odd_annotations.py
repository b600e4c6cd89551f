"""Annotation files that hold nothing, or something odd: what every command that reads them says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from annotations.annotation import Annotation, Role
from annotations.errors import AnnotationError
from annotations.files.asap import write_asap
from annotations.files.formats import Format, write_annotations
from staging.cli import app
from staging.errors import CohortError
from wsi.writing.pyramid import write_pyramid

HALO = """<Annotations><Annotation LineColor="255" Name="Tumor" Visible="True"><Regions>
<Region Type="Polygon" HasEndcaps="0" NegativeROA="0"><Vertices>
<V X="100" Y="100" /><V X="200" Y="100" /><V X="200" Y="200" /><V X="100" Y="200" /></Vertices></Region>
</Regions></Annotation></Annotations>"""
NOTHING = {
    ".xml": "<ASAP_Annotations><Annotations/></ASAP_Annotations>",
    ".annotations": HALO.replace("<V ", "<Corner "),
    ".geojson": '{"type": "FeatureCollection", "features": []}',
}
every_kind = pytest.mark.parametrize("suffix", NOTHING)


def sentinode(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(*arguments: object) -> tuple[dict[str, Any], str]:
    """The JSON on stdout, and stderr."""
    done = sentinode(*arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record, done.stderr


def refused(*arguments: object) -> str:
    """What is wrong, as the error says it."""
    error = sentinode(*arguments).exception
    assert isinstance(error, AnnotationError | CohortError), error
    return str(error)


def drawn_at(path: Path, content: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def square(side: float = 100) -> Annotation:
    corners = np.array([(100, 100), (100 + side, 100), (100 + side, 100 + side), (100, 100 + side)], dtype=np.float64)
    return Annotation(name="a", group="Tumor", role=Role.TUMOUR, kind="Polygon", vertices=corners)


@every_kind
def test_a_mask_of_nothing_is_an_error(tmp_path: Path, suffix: str) -> None:
    source, target = drawn_at(tmp_path / f"a{suffix}", NOTHING[suffix]), tmp_path / "mask.tif"
    command = ("mask", source, "--slide-size", 400, 400, "--slide-mpp", 0.5, "-o", target)
    assert "--allow-empty" in refused(*command)
    assert not target.exists()
    assert told(*command, "--allow-empty")[0]["tumour_px"] == 0


@every_kind
def test_lesions_of_nothing_are_an_error(tmp_path: Path, suffix: str) -> None:
    source, output = drawn_at(tmp_path / f"a{suffix}", NOTHING[suffix]), tmp_path / "out"
    command = ("lesions", source, "--slide-mpp", 0.5, "-o", output)
    said = refused(*command)
    assert str(source) in said
    assert "--allow-empty" in said
    assert not output.exists()
    assert told(*command, "--allow-empty")[0]["lesions"] == {"a": 0}


@every_kind
def test_nothing_is_not_converted(tmp_path: Path, suffix: str) -> None:
    source, target = drawn_at(tmp_path / f"a{suffix}", NOTHING[suffix]), tmp_path / "b.geojson"
    assert "nothing is drawn in it (check the file, or give --allow-empty)" in refused("convert", source, target)
    assert not target.exists()
    assert told("convert", source, target, "--allow-empty")[0]["vertices"] == 0


@every_kind
def test_a_mask_without_an_outline_is_no_normal_slide(tmp_path: Path, suffix: str) -> None:
    write_asap(tmp_path / "b.xml", [square(1600)])
    masks = drawn_at(tmp_path / "masks" / f"a{suffix}", NOTHING[suffix]).parent
    write_asap(masks / "b.xml", [square(1600)])
    for name in "ab":
        drawn_at(tmp_path / "detections" / f"{name}.csv", "")
    command = ("score", "froc", masks, tmp_path / "detections")
    assert "the mask of a has no tumour" in refused(*command)
    assert told(*command, "--missing-mask-is-normal")[0]["tumour_slides"] == 1


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    tissue = np.clip(np.random.default_rng(0).normal((170, 90, 150), 20, (128, 128, 3)), 0, 255).astype(np.uint8)
    tiles = [tissue if number % 4 < 3 else np.full_like(tissue, 244) for number in range(16)]
    write_pyramid(folder / "a.tif", width=512, height=512, mpp=0.5, tiles=tiles, tile_size=128)
    return folder


@every_kind
def test_patches_of_nothing_are_an_error(slides: Path, tmp_path: Path, suffix: str) -> None:
    source = drawn_at(tmp_path / "drawn" / f"a{suffix}", NOTHING[suffix])
    sizes = ("--mpp", 1, "--size", 32, "--tumour", 2, "--normal", 2, "--workers", 1)
    command = ("patches", slides, source.parent, "-o", tmp_path / "p.parquet", *sizes)
    said = refused(*command)
    assert str(source) in said
    assert "label the slide negative" in said
    assert told(*command, "--allow-empty")[0]["classes"] == {"normal": 2}


def test_a_slide_labelled_negative_may_have_an_empty_file(slides: Path, tmp_path: Path) -> None:
    folder = drawn_at(tmp_path / "drawn" / "a.xml", NOTHING[".xml"]).parent
    reference = drawn_at(tmp_path / "labels.csv", "slide,label\na,negative\n")
    sizes = ("--mpp", 1, "--size", 32, "--tumour", 2, "--normal", 2, "--workers", 1)
    record, _ = told("patches", slides, folder, "-r", reference, "-o", tmp_path / "p.parquet", *sizes)
    assert record["classes"] == {"normal": 2}


def test_halo_is_read_by_every_command(slides: Path, tmp_path: Path) -> None:
    source = drawn_at(tmp_path / "drawn" / "a.annotations", HALO)
    masked, _ = told("mask", source, "--slides", slides, "-o", tmp_path / "mask.tif")
    assert masked["tumour_px"] == 10_000
    assert told("lesions", source, "--slide-mpp", 0.5, "-o", tmp_path / "out")[0]["lesions"] == {"a": 1}
    converted, _ = told("convert", source, tmp_path / "b.imagescope.xml")
    assert (converted["vertices"], converted["lost"]) == (4, {})
    sizes = ("--mpp", 1, "--size", 32, "--tumour", 2, "--normal", 0, "--workers", 1)
    assert told("patches", slides, source.parent, "-o", tmp_path / "p.parquet", *sizes)[0]["classes"] == {"tumour": 2}


def odd_geojson(path: Path, side: float = 100) -> Path:
    """A square, a feature without a geometry, and a measurement that is no number."""
    write_annotations(path, [square(side)])
    content = json.loads(path.read_text())
    content["features"][0]["properties"]["measurements"] = {"a": float("nan")}
    content["features"].append({"type": "Feature", "geometry": None, "properties": {}})
    path.write_text(json.dumps(content))
    return path


ODD = (
    "left out 1 feature without a geometry: feature 1",
    "left out 1 measurement without a finite value: feature 0 ('a')",
)


def test_what_is_odd_is_said_and_the_rest_is_read(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    source = odd_geojson(tmp_path / "drawn" / "a.geojson")
    record, said = told("mask", source, "--slides", slides, "-o", tmp_path / "mask.tif")
    assert (record["tumour_px"], record["warnings"]) == (10_000, [f"a.geojson: {one}" for one in ODD])
    assert f"a.geojson: {ODD[0]}" in said
    record, said = told("lesions", source, "--slide-mpp", 0.5, "-o", tmp_path / "out")
    assert (record["lesions"], record["warnings"]) == ({"a": 1}, {"a": list(ODD)})
    assert f"a: {ODD[1]}" in said
    record, said = told("convert", source, tmp_path / "b.xml")
    assert (record["annotations"], record["warnings"]) == (1, list(ODD))
    assert f"a.geojson: {ODD[0]}" in said
    sizes = ("--mpp", 1, "--size", 32, "--tumour", 2, "--normal", 0, "--workers", 1)
    for _ in range(2):
        record, said = told("patches", slides, source.parent, "-o", tmp_path / "p", *sizes)
        assert (record["classes"], record["warnings"]) == ({"tumour": 2}, {"a": list(ODD)})
        assert f"a: {ODD[0]}" in said


def test_froc_says_what_is_odd(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    odd_geojson(tmp_path / "masks" / "a.geojson", side=1600)
    drawn_at(tmp_path / "detections" / "a.csv", "0.9,900,900\n")
    record, said = told("score", "froc", tmp_path / "masks", tmp_path / "detections")
    assert (record["hit"], record["warnings"]) == (1, {"a": list(ODD)})
    assert f"a: {ODD[0]}" in said


def test_halo_as_users_sent_it(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    source = real_data("reports/halo_polygon.annotations")
    command = ("mask", source, "--slide-size", 400, 400, "--slide-mpp", 0.5, "-o", tmp_path / "mask.tif")
    assert told(*command)[0]["tumour_px"] == 10_000


@pytest.mark.parametrize("suffix", [".xml", ".imagescope.xml", ".geojson", ".json", ".annotations"])
def test_froc_takes_annotations_of_every_format(tmp_path: Path, suffix: str) -> None:
    masks, outline = tmp_path / "masks", square(1600)
    masks.mkdir()
    form = Format.IMAGESCOPE if suffix == ".annotations" else None
    write_annotations(masks / f"tumor_001{suffix}", [outline], form)
    drawn_at(tmp_path / "detections" / "tumor_001.csv", "0.9,900,900\n")
    record, _ = told("score", "froc", masks, tmp_path / "detections")
    assert (record["lesions"], record["hit"], record["tumour_values"]) == (1, 1, {"outlines": 1})
