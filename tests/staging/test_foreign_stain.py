"""From training to a run: a slide stained unlike the training set is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from staging.cli import app
from wsi.cnn.checkpoint import load_checkpoint
from wsi.stain_range import PROVENANCE
from wsi.writing.pyramid import write_pyramid

pytestmark = pytest.mark.slow  # it trains a network

TILE = 256
SQUARE = """<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58">
<Coordinates><Coordinate Order="0" X="60" Y="60"/><Coordinate Order="1" X="190" Y="60"/>
<Coordinate Order="2" X="190" Y="190"/><Coordinate Order="3" X="60" Y="190"/></Coordinates></Annotation></Annotations>
<AnnotationGroups/></ASAP_Annotations>"""


def called(*arguments: object) -> tuple[str, dict[str, Any]]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stderr, json.loads(result.stdout.splitlines()[-1])


def write_slide(path: Path, colour: tuple[int, int, int]) -> Path:
    rng = np.random.default_rng(len(path.name))
    tissue = np.clip(rng.normal(colour, 12, (TILE, TILE, 3)), 0, 255).astype(np.uint8)
    tiles = [tissue, np.full((TILE, TILE, 3), 244, np.uint8)]
    write_pyramid(path, width=2 * TILE, height=TILE, mpp=8.0, tiles=tiles, tile_size=TILE)
    return path


def test_the_stains_of_training_are_kept_and_compared(tmp_path: Path) -> None:
    usual, dark = (170, 90, 150), (90, 30, 80)
    images, drawn = tmp_path / "images", tmp_path / "annotations"
    for folder in (images, drawn):
        folder.mkdir()
    for name in ("patient_000_node_0", "patient_001_node_0"):
        write_slide(images / f"{name}.tif", usual)
        (drawn / f"{name}.xml").write_text(SQUARE)
    counts = ("--tumour", 8, "--normal", 8, "--no-contact-sheet", "--workers", 1)
    called("patches", images, drawn, "-o", tmp_path / "p.parquet", "--mpp", 8, "--size", 128, *counts)
    model = tmp_path / "model.safetensors"
    called("train", tmp_path / "p.parquet", "-o", model, "--epochs", 1, "--held-out", 0)
    assert set(load_checkpoint(model).provenance[PROVENANCE]) == {"low", "high"}
    said, facts = called("heatmap", write_slide(tmp_path / "u.tif", usual), "-o", tmp_path / "u.zarr", "-m", model)
    assert (said.count("stained unlike"), facts["warnings"]) == (0, [])
    foreign = write_slide(tmp_path / "d.tif", dark)
    said, facts = called("heatmap", foreign, "-o", tmp_path / "d.zarr", "-m", model)
    assert said.count("is stained unlike the training set") == 1
    run = (
        "run",
        foreign,
        images / "patient_000_node_0.tif",
        "-o",
        tmp_path / "out",
        "-m",
        model,
        "--workers",
        1,
        "--nodes",
        1,
    )
    assert {slide: len(said) for slide, said in called(*run)[1]["warnings"].items()} == {"d": 1}
    assert "is stained unlike the training set" in (tmp_path / "out" / "warnings.csv").read_text()
    (tmp_path / "out" / "slides" / "d.json").unlink()  # as if killed after the heatmap
    assert list(called(*run)[1]["warnings"]) == ["d"]
