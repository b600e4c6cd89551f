"""A command that is called again, after it ended, was killed, or while it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from staging.cli import app
from staging.lesions import measurements
from wsi.cnn.checkpoint import save_checkpoint
from wsi.errors import OutputExistsError, OutputInUseError
from wsi.lock import OutputLock
from wsi.store import unfinished_name
from wsi.writing.pyramid import write_pyramid


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path, make_checkpoint: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two slides and a model; the working directory."""
    for number, name in enumerate(("a", "b")):
        image = np.full((256, 256, 3), 244, np.uint8)
        image[60:200, 60:200] = np.random.default_rng(number).integers(120, 190, (140, 140, 3))
        write_pyramid(tmp_path / f"{name}.tif", width=256, height=256, mpp=8.0, tile_size=256, levels=1, tiles=[image])
    save_checkpoint(tmp_path / "m.safetensors", make_checkpoint(mpp=8.0))
    monkeypatch.chdir(tmp_path)
    return tmp_path


SHOWN = ("-m", "m.safetensors", "--overlay", "h.png", "--tiff", "h.tif", "--tiff8", "h8.tif")


def test_a_heatmap_with_its_pictures_is_kept(folder: Path) -> None:
    assert call("heatmap", "a.tif", "-o", "h.zarr", *SHOWN).exit_code == 0
    before = contents(folder)
    again = call("heatmap", "a.tif", "-o", "h.zarr", *SHOWN)
    assert again.exit_code == 0, again.output
    assert "exists already" in again.stderr
    assert contents(folder) == before
    (folder / "h.png").unlink()  # as if the first call had been killed before it was drawn
    assert call("heatmap", "a.tif", "-o", "h.zarr", *SHOWN).exit_code == 0
    assert contents(folder) == before


def test_a_heatmap_has_the_picture_that_a_run_makes_of_it(folder: Path, make_checkpoint: Callable[..., Any]) -> None:
    sure = replace(make_checkpoint(mpp=8.0), threshold=0.01, provenance={"peak": 0.01})
    save_checkpoint(folder / "m.safetensors", sure)
    assert call("heatmap", "a.tif", "-o", "h.zarr", *SHOWN).exit_code == 0
    done = call("run", "a.tif", "-o", "out", "-m", "m.safetensors", "--workers", 1)
    assert done.exit_code in (0, 3), done.output
    assert "a,negative" not in (folder / "out" / "labels.csv").read_text()
    assert (folder / "h.png").read_bytes() == (folder / "out" / "overlays" / "a.png").read_bytes()


@pytest.mark.parametrize(
    "shown", [("--overlay", "h.png"), ("--tiff", "h.tif"), ("--tiff8", "h.tif"), ("--overlay", "h.pdf")]
)
def test_a_picture_of_another_heatmap_is_not_replaced(folder: Path, shown: tuple[str, str]) -> None:
    assert call("heatmap", "a.tif", "-o", "a.zarr", "-m", "m.safetensors", *shown).exit_code == 0
    assert call("heatmap", "b.tif", "-o", "b.zarr", "-m", "m.safetensors").exit_code == 0
    before = contents(folder)
    done = call("heatmap", "b.tif", "-o", "b.zarr", "-m", "m.safetensors", *shown)
    assert isinstance(done.exception, OutputExistsError)
    assert "another heatmap" in str(done.exception)
    assert contents(folder) == before
    assert call("heatmap", "b.tif", "-o", "b.zarr", "-m", "m.safetensors", *shown, "--overwrite").exit_code == 0
    assert (folder / shown[1]).read_bytes() != before[shown[1]]


def test_lesions_that_were_killed_while_being_written_are_written_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("heatmap", "a.tif", "-o", "a.zarr", "-m", "m.safetensors").exit_code == 0
    with monkeypatch.context() as patched:
        patched.setattr(measurements, "shape_table", lambda *_: os._exit(9))
        child = os.fork()
        if not child:
            call("lesions", "a.zarr", "-o", "killed")
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert "slides" not in json.loads((folder / "killed" / "lesions.json").read_text())
    assert call("lesions", "a.zarr", "-o", "killed").exit_code == 0
    assert call("lesions", "a.zarr", "-o", "whole").exit_code == 0
    assert contents(folder / "killed") == contents(folder / "whole")
    assert isinstance(call("lesions", "a.zarr", "-o", "whole").exception, OutputExistsError)  # a finished one is kept


@pytest.mark.parametrize("command", ["lesions a.zarr -o out", "phantom out --patient-count 1"])
def test_one_writer_at_a_time(folder: Path, command: str) -> None:
    assert call("heatmap", "a.tif", "-o", "a.zarr", "-m", "m.safetensors").exit_code == 0
    with OutputLock(folder / "out"):
        before = contents(folder / "out")
        assert isinstance(call(*command.split()).exception, OutputInUseError)
        assert contents(folder / "out") == before


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("convert a.tif {}", "new.tif"),
        ("heatmap a.tif -m m.safetensors -o {}", "new.zarr"),
        ("tissue a.tif -o {}", "new.png"),
    ],
)
def test_what_a_killed_call_left_is_swept_by_the_next(folder: Path, command: str, output: str) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    target = folder / output
    left = unfinished_name(target, "work").name.replace(f"-{os.getpid()}-", f"-{gone.pid}-")
    (folder / left).mkdir()
    (folder / left.replace(".work", ".partial")).write_bytes(b"half")
    assert call(*command.format(target).split()).exit_code == 0
    assert [path.name for path in folder.glob(".*")] == []
