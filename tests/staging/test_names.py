"""Names with accents: macOS writes them with two code points per letter, most tables with one."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from annotations.annotation import Annotation, Role
from annotations.files.asap import write_asap
from annotations.files.formats import read_annotations
from annotations.groups import read_group_map
from staging.cli import app
from staging.cohorts.names import slide_key, slide_name
from staging.cohorts.patients import read_patients
from wsi.writing.pyramid import write_pyramid

ONE, TWO = (unicodedata.normalize(form, "Müller Å-1") for form in ("NFC", "NFD"))
both_ways = pytest.mark.parametrize(("first", "second"), [(ONE, TWO), (TWO, ONE)])


def told(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def contours(path: Path, group: str = "Tumor", side: float = 100) -> Path:
    path.parent.mkdir(exist_ok=True)
    corners = np.array([(100, 100), (100 + side, 100), (100 + side, 100 + side), (100, 100 + side)], dtype=np.float64)
    write_asap(path, [Annotation(name="a", group=group, role=Role.TUMOUR, kind="Polygon", vertices=corners)])
    return path


def slide_at(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    tissue = np.clip(np.random.default_rng(0).normal((170, 90, 150), 20, (128, 128, 3)), 0, 255).astype(np.uint8)
    tiles = [tissue if number % 4 < 3 else np.full_like(tissue, 244) for number in range(16)]
    write_pyramid(path, width=512, height=512, mpp=0.5, tiles=tiles, tile_size=128)
    return path


@given(st.text(max_size=8), st.sampled_from(["", ".svs", ".geojson", ".annotations", ".xml"]))
def test_forms_of_a_name_have_one_key(name: str, suffix: str) -> None:
    forms = [unicodedata.normalize(form, name) + suffix for form in ("NFC", "NFD")]
    assert slide_key(forms[0]) == slide_key(forms[1])
    assert slide_name(forms[0]) == slide_name(forms[1])


def test_annotations_in_the_format_of_imagescope_have_the_key_of_their_slide() -> None:
    assert slide_key("A.imagescope.xml") == slide_key("a.tif") == "a"
    assert slide_key("a.imagescope.tif") == "a.imagescope"


@pytest.mark.parametrize("name", ["A.xml", "a.tif.xml", "a.tif.geojson", "A.tif - Series 0.geojson", "a.ndpi.json"])
def test_annotations_named_after_the_file_of_a_slide_have_its_key(name: str) -> None:
    assert slide_key(name) == "a"
    assert slide_key("a.v2.xml") == "a.v2"
    assert slide_key("a.tif - Series 1.geojson") == "a.tif - series 1"


@both_ways
def test_a_file_finds_its_slide(tmp_path: Path, first: str, second: str) -> None:
    slide = slide_at(tmp_path / "slides" / f"{first}.tif")
    drawn = contours(tmp_path / "drawn" / f"{second}.xml")
    assert told("mask", drawn, "--slides", slide.parent, "-o", tmp_path / "mask.tif")["tumour_px"] == 10_000
    labels = tmp_path / "labels.csv"
    labels.write_text(f"slide,label\n{second},macro\n")
    sizes = ("--mpp", 1, "--size", 32, "--tumour", 2, "--normal", 0, "--workers", 1)
    made = told("patches", slide.parent, drawn.parent, "-r", labels, "-o", tmp_path / "p.parquet", *sizes)
    assert (made["classes"], made["skipped"]) == ({"tumour": 2}, {})


@both_ways
def test_scores_join_names(tmp_path: Path, first: str, second: str) -> None:
    masks = contours(tmp_path / "masks" / f"{first}.xml", side=1600).parent
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / f"{second}.csv").write_text("0.9,900,900\n")
    assert told("score", "froc", masks, tmp_path / "found")["hit"] == 1
    (tmp_path / "a.csv").write_text(f"slide,label\n{first},macro\nb,negative\n")
    (tmp_path / "b.csv").write_text(f"slide,label\n{second}.svs,macro\nb,negative\n")
    assert told("score", "labels", tmp_path / "a.csv", tmp_path / "b.csv")["accuracy"] == 1


@both_ways
def test_groups_and_patients_join_names(tmp_path: Path, first: str, second: str) -> None:
    drawn = contours(tmp_path / "a.xml", first)
    groups = tmp_path / "groups.toml"
    groups.write_text(f'[groups]\n"{second}" = "tumour"\n')
    assert read_annotations(drawn, read_group_map(groups))[0].role is Role.TUMOUR
    (tmp_path / "p.csv").write_text(f"slide,patient\n{first},{first}\n{second}.svs,{second}\n")
    assert read_patients(tmp_path / "p.csv").nodes == {slide_key(first): (ONE, 0)}
