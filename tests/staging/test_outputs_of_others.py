"""No command ever replaces its own input, a folder, a link, or a file of another kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from staging.cli import app
from wsi.cnn.checkpoint import save_checkpoint
from wsi.errors import OutputExistsError, OutputNameError
from wsi.writing.pyramid import write_pyramid

LABELS = "patient,stage\npatient_000.zip,pN0\n" + "".join(
    f"patient_000_node_{node}.tif,negative\n" for node in range(5)
)


@pytest.fixture
def folder(tmp_path: Path, make_checkpoint: Callable[..., Any]) -> Path:
    image = np.full((256, 256, 3), 244, np.uint8)
    image[60:200, 60:200] = np.random.default_rng(0).integers(120, 190, (140, 140, 3))
    slide = tmp_path / "slides" / "s.tif"
    slide.parent.mkdir()
    write_pyramid(slide, width=256, height=256, mpp=8.0, tile_size=256, levels=1, tiles=[image])
    save_checkpoint(tmp_path / "m.safetensors", make_checkpoint(mpp=8.0))
    (tmp_path / "labels.csv").write_text(LABELS)
    (tmp_path / "other.csv").write_text("mine")
    (tmp_path / "link.csv").symlink_to(tmp_path / "other.csv")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    "command",
    [
        "tissue slides/s.tif -o slides/s.tif",
        "tissue slides/s.tif -o slides",
        "tissue slides/s.tif -o other.csv",
        "heatmap slides/s.tif -m m.safetensors -o slides",
        "heatmap slides/s.tif -m m.safetensors -o slides/s.tif",
        "heatmap slides/s.tif -m m.safetensors -o m.safetensors",
        "heatmap slides/s.tif -m m.safetensors -o h.zarr --overlay slides/s.tif",
        "heatmap slides/s.tif -m m.safetensors -o h.zarr --tiff slides/s.tif",
        "stage labels.csv -o labels.csv",
        "stage labels.csv -o slides",
        "stage labels.csv -o link.csv",
        "score kappa labels.csv labels.csv --picture other.csv",
        "score labels labels.csv labels.csv --picture slides",
        "label labels.csv -o labels.csv",
        "train labels.csv -o labels.csv",
        "convert slides/s.tif slides",
        "convert slides/s.tif slides/s.tif",
    ],
)
def test_what_is_not_its_own_is_left_as_it_is(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    before = contents(folder)
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code != 0
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after.keys() - before.keys() if not name.startswith("h.zarr")]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("tissue slides/s.tif -o slides/s.tif", OutputExistsError),
        ("tissue slides/s.tif -o out.pdf", OutputNameError),
        ("stage labels.csv -o slides", OutputExistsError),
        ("heatmap slides/s.tif -m m.safetensors -o slides", OutputExistsError),
    ],
)
def test_the_reason_is_said(command: str, kind: type[Exception], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(kind):
        CliRunner().invoke(app, command.split(), catch_exceptions=False)
