"""What can be known before hours of work is said before it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_checkpoint import fresh
from typer.testing import CliRunner, Result

from annotations.errors import AnnotationFormatError
from staging.cli import app
from staging.cohorts.camelyon import find_slides
from staging.errors import CohortError
from staging.runs.cohort import cannot_be_staged
from wsi.cnn.checkpoint import save_checkpoint
from wsi.errors import CheckpointError, PathologyError, StorageError
from wsi.outputs import SLIDE_TIFF, check_output
from wsi.writing.pyramid import write_pyramid

TILE = 128


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_slide(path: Path) -> Path:
    """1 mm of tissue beside glass at 8 um/px."""
    tissue = np.clip(np.random.default_rng(0).normal((170, 90, 150), 20, (TILE, TILE, 3)), 0, 255).astype(np.uint8)
    tiles = [tissue, np.full((TILE, TILE, 3), 244, np.uint8)]
    path.parent.mkdir(exist_ok=True)
    write_pyramid(path, width=2 * TILE, height=TILE, mpp=8.0, tiles=tiles, tile_size=TILE)
    return path


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "images" / "normal_001.tif")


def labels(slide: Path) -> tuple[object, ...]:
    (slide.parent.parent / "annotations").mkdir(exist_ok=True)
    table = slide.parent.parent / "labels.csv"
    table.write_text(f"slide,label\n{slide.stem},negative\n")
    return "-a", slide.parent.parent / "annotations", "-r", table


def test_a_library_that_a_format_needs(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setattr("staging.training.sampling.each", pytest.fail)  # nothing is drawn
    result = called(
        "patches", slide, *labels(slide), "-o", tmp_path / "p", "--format", "hdf5", "--mpp", 8, "--tumour", 0
    )
    assert "HDF5 needs h5py" in str(result.exception)
    assert not (tmp_path / "p").exists()


def test_annotations_that_cannot_be_read(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("staging.training.sampling.each", pytest.fail)  # nothing is drawn
    options = labels(slide)
    (tmp_path / "annotations" / "normal_001.xml").write_text("<ASAP_Annotations>")
    result = called("patches", slide, *options, "-o", tmp_path / "p", "--mpp", 8)
    assert isinstance(result.exception, AnnotationFormatError)
    assert not (tmp_path / "p").exists()


def test_a_library_that_an_encoder_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "e.onnx").write_bytes(b"\x08\x07")
    command = ("features", tmp_path / "no slides", "-e", tmp_path / "e.onnx", "--mpp", 2, "--size", 32)
    result = called(*command, "-o", tmp_path / "f")
    assert isinstance(result.exception, PathologyError)
    assert "needs onnxruntime" in str(result.exception)


@pytest.mark.parametrize("content", [None, b"pickle"])
def test_an_encoder_that_is_none_is_refused_before_slides_are_listed(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "e.pt2").write_bytes(content)
    command = ("features", tmp_path / "no slides", "-e", tmp_path / "e.pt2", "--mpp", 2, "--size", 32)
    assert isinstance(called(*command, "-o", tmp_path / "f").exception, CheckpointError)


def test_a_model_that_is_none_is_refused_before_slides_are_listed(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"nothing")
    model = ("-m", tmp_path / "m.safetensors")
    for command in (
        ("run", tmp_path / "no slides", "-o", tmp_path / "out"),
        ("patches", tmp_path / "no slides", "-a", tmp_path, "-o", tmp_path / "p", "--hard", 1),
        ("heatmap", tmp_path / "no slide.tif", "-o", tmp_path / "h.zarr"),
    ):
        assert isinstance(called(*command, *model).exception, CheckpointError), command


def test_a_checkpoint_to_start_from_is_read_before_the_patches(tmp_path: Path) -> None:
    command = ("train", tmp_path / "no patches", "-o", tmp_path / "m.safetensors", "--start", tmp_path / "no start")
    assert isinstance(called(*command).exception, CheckpointError)


def test_heatmaps_that_are_missing_are_named_before_drawing(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staging.training.sampling.each", pytest.fail)
    options = ("--mpp", 8, "--hard", 1, "--heatmaps", tmp_path)
    result = called("patches", slide, *labels(slide), "-o", tmp_path / "p", *options)
    assert isinstance(result.exception, CohortError)
    assert "has no heatmap of normal_001" in str(result.exception)


def test_outputs_that_cannot_be_written(slide: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    save_checkpoint(tmp_path / "m.safetensors", fresh(mpp=8.0))
    bad = tmp_path / "file" / "x.png"
    for command in (
        ("heatmap", slide, "-m", tmp_path / "m.safetensors", "-o", tmp_path / "h.zarr", "--overlay", bad),
        ("run", slide, "-m", tmp_path / "m.safetensors", "-o", bad.with_suffix("")),
        ("tissue", slide, "-o", bad),
    ):
        result = called(*command)
        assert isinstance(result.exception, StorageError), command
        assert f"cannot be written: {tmp_path / 'file'} is not a folder" in str(result.exception)
    assert not (tmp_path / "h.zarr").exists()
    check_output(tmp_path / "new" / "deep" / "a.tif", SLIDE_TIFF)


def test_who_cannot_be_staged_is_known_from_names(tmp_path: Path) -> None:
    def reasons(*names: str, nodes: int = 5) -> dict[str, str]:
        paths = [tmp_path / f"{name}.tif" for name in names]
        for path in paths:
            path.touch()
        return cannot_be_staged(find_slides(paths), tmp_path / "out", nodes)

    assert reasons("patient_000_node_0", nodes=1) == {}
    whole = [f"patient_001_node_{node}" for node in range(5)]
    assert reasons(*whole) == {}
    assert list(reasons("patient_000_node_0", *whole)) == ["patient_000"]
    found = reasons("patient_000_node_0", "normal_001")
    assert found["patient_000"].startswith("missing node_1")
    assert "normal_001" in found
    (tmp_path / "out" / "slides").mkdir(parents=True)
    for node in range(1, 5):  # of an earlier call
        (tmp_path / "out" / "slides" / f"patient_000_node_{node}.json").touch()
    assert reasons("patient_000_node_0") == {}


@pytest.mark.slow
def test_a_run_without_a_score_says_so_first_and_ends_with_3(
    slide: Path, tmp_path: Path, make_checkpoint: Callable[..., Any]
) -> None:
    save_checkpoint(tmp_path / "m.safetensors", make_checkpoint(mpp=8.0))
    (tmp_path / "stages.csv").write_text("patient,stage\npatient_000.zip,pN0\n")
    command = ("run", slide.parent, "-o", tmp_path / "out", "-m", tmp_path / "m.safetensors", "--workers", 1)
    result = called(*command, "--reference", tmp_path / "stages.csv")
    assert result.exit_code == 3, result.output
    assert result.stderr.splitlines()[0].startswith("sentinode: will not be staged")
    facts = json.loads(result.stdout)
    assert (facts["slides"], facts["kappa"]) == (1, None)
    assert list(facts["unscored"]) == ["normal_001"]
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    assert (score["patients"], score["complete"], score["kappa"]) == (0, False, None)
    assert "no patient was scored" in (tmp_path / "out" / "report.html").read_text()
    assert called(*command).exit_code == 0  # without a reference no score is missing
