"""Pixels finer than the slide's own are refused with both numbers, unless --upsample is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from staging.cli import app
from staging.training.sources import PatchRecipe, described
from wsi.cnn.checkpoint import save_checkpoint
from wsi.errors import ResolutionError
from wsi.readers.resolution import OverridingMpp
from wsi.slide import UPSAMPLING, Slide
from wsi.writing.pyramid import write_pyramid

pytestmark = pytest.mark.slow  # its commands take seconds

TILE = 128
REPEATED = "has pixels of 8 um, which are repeated for the 2 um asked for"
REFUSAL = "has pixels of 8 um, coarser than the 2 um asked for"


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result) -> bool:
    return isinstance(result.exception, ResolutionError) and REFUSAL in str(result.exception)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of two colours at 8 um/px: tissue of 1 mm on the left, glass on the right."""
    tissue = np.clip(np.random.default_rng(0).normal((170, 90, 150), 20, (TILE, TILE, 3)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "patient_000_node_0.tif"
    tiles = [tissue, np.full((TILE, TILE, 3), 244, np.uint8)]
    write_pyramid(path, width=2 * TILE, height=TILE, mpp=8.0, tiles=tiles, tile_size=TILE)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Any]) -> Path:
    path = tmp_path_factory.mktemp("model") / "fine.safetensors"
    save_checkpoint(path, make_checkpoint(mpp=2.0))
    return path


def test_detail_is_checked_with_the_tolerance_of_scanners(slide: Path) -> None:
    with Slide.open(slide) as opened:
        opened.check_detail(16.0)
        opened.check_detail(8.0 / UPSAMPLING + 0.01)
        with pytest.raises(ResolutionError, match=r"pixels of 8 um, coarser than the 6\.9"):
            opened.check_detail(8.0 / UPSAMPLING - 0.01)
    with Slide.open(slide, mpp=OverridingMpp(2.0)) as opened:
        opened.check_detail(2.0)


def test_a_heatmap(slide: Path, model: Path, tmp_path: Path) -> None:
    command = ("heatmap", slide, "-o", tmp_path / "h.zarr", "-m", model)
    assert refused(called(*command))
    assert not (tmp_path / "h.zarr").exists()
    done = called(*command, "--upsample")
    assert done.exit_code == 0
    assert REPEATED in done.stderr
    assert REPEATED in str(json.loads(done.stdout)["warnings"])


def test_a_run_quarantines_the_slide(slide: Path, model: Path, tmp_path: Path) -> None:
    command = ("run", slide, "-o", tmp_path / "out", "-m", model, "--workers", 1, "--nodes", 1)
    result = called(*command)
    assert result.exit_code == 3
    assert f"resolution: {slide}: {REFUSAL}" in json.loads(result.stdout)["quarantined"]["patient_000_node_0"]
    again = called(*command, "--upsample")  # of the same configuration
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["slides"] == 1
    third = called(*command)  # goes on saying what was done
    assert third.exit_code == 0
    for done in (again, third):
        assert REPEATED in done.stderr
        assert REPEATED in str(json.loads(done.stdout)["warnings"])
        assert REPEATED in (tmp_path / "out" / "warnings.csv").read_text()


def test_patches(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "labels.csv").write_text("slide,label\npatient_000_node_0,negative\n")
    command = ("patches", slide, "-a", tmp_path / "annotations", "-r", tmp_path / "labels.csv", "--workers", 1)
    options = (
        "-o",
        tmp_path / "p.parquet",
        "--mpp",
        2,
        "--size",
        64,
        "--tumour",
        0,
        "--normal",
        2,
        "--no-contact-sheet",
    )
    assert refused(called(*command, *options))
    (tmp_path / "annotations" / "typo.xml").touch()
    drawn = called(*command, *options, "--upsample")
    assert drawn.exit_code == 0
    assert "of the annotations skipped: 1 of no slide here (typo.xml)" in drawn.stderr
    assert json.loads(drawn.stdout)["skipped"] == {"of no slide here": {"count": 1, "names": "typo.xml"}}


def test_the_option_is_no_part_of_what_was_drawn() -> None:
    recipe = PatchRecipe(mpp=2.0, size_px=64, tumour=1, normal=1, seed=0)
    assert "upsample" not in described(recipe)


def test_features(slide: Path, tmp_path: Path) -> None:
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    shape: Any = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(pool, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=shape), tmp_path / "e.pt2")
    command = ("features", slide, "-e", tmp_path / "e.pt2", "--mpp", 2, "--size", 32, "-o", tmp_path / "f")
    result = called(*command, "--workers", 1)
    assert result.exit_code == 3, result.output
    assert REFUSAL in json.loads(result.stdout)["quarantined"]["patient_000_node_0"]
    result = called(*command, "--workers", 1, "--upsample")
    assert result.exit_code == 0, result.output


def test_a_conversion(slide: Path, tmp_path: Path) -> None:
    command = ("convert", slide, tmp_path / "fine.tif", "--mpp", 2)
    assert refused(called(*command))
    assert not (tmp_path / "fine.tif").exists()
    assert called(*command, "--upsample").exit_code == 0
    assert called("convert", slide, tmp_path / "coarse.tif", "--mpp", 16).exit_code == 0
