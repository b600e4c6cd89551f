from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from staging.cli import app
from staging.errors import CohortError
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap


def heatmaps(folder: Path, count: int = 3) -> list[Path]:
    cells = np.zeros((20, 30), np.float32)
    found = Heatmap(frame=Frame(x=0, y=0, downsample=8, shape=cells.shape, mpp=0.5), array=cells, tissue=cells == 0)
    paths = [folder / f"{number}.zarr" for number in range(count)]
    for path in paths:
        write_heatmap(path, found, {"number": path.name})
    return paths


def test_what_is_as_it_was_made_is_said_to_be(tmp_path: Path) -> None:
    heatmaps(tmp_path)
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"artefacts": 3, "broken": {}})
    alone = CliRunner().invoke(app, ["verify", str(tmp_path / "0.zarr")])
    assert (alone.exit_code, json.loads(alone.stdout)) == (0, {"artefacts": 1, "broken": {}})


def test_what_changed_is_named_and_nothing_is_touched(tmp_path: Path) -> None:
    paths = heatmaps(tmp_path)
    chunk = next(file for file in sorted(paths[1].rglob("c/*/*")) if file.is_file())
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert list(found["broken"]) == ["1.zarr"]
    assert "was changed" in found["broken"]["1.zarr"][0]
    assert "1.zarr: probability/c/0/0 was changed" in done.stderr
    assert chunk.read_bytes() == bytes(data)


def test_what_holds_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(CohortError, match="no sentinode artefacts"):
        CliRunner().invoke(app, ["verify", str(tmp_path)], catch_exceptions=False)
