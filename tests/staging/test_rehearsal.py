"""What a dry run says is what a run then does; it writes nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_checkpoint import fresh
from typer.testing import CliRunner

from staging.cli import app
from staging.phantom import generate_cohort
from staging.runs.rehearsal import Rehearsal, Sampled
from wsi.cnn.checkpoint import save_checkpoint


@pytest.mark.slow
def test_a_dry_run_foretells_the_run(tmp_path: Path) -> None:
    generate_cohort(tmp_path / "cohort", patients=1, centres=(0,), seed=7, mpp=2.0, size_um=(4500, 3500))
    save_checkpoint(tmp_path / "m.safetensors", fresh())
    images = tmp_path / "cohort" / "images"
    shutil.copy(images / "patient_000_node_0.tif", tmp_path / "cut.tif")
    (images / "patient_001_node_0.tif").write_bytes((tmp_path / "cut.tif").read_bytes()[:900])
    command = ["run", images, "-o", tmp_path / "out", "-m", tmp_path / "m.safetensors", "--workers", 1]

    def called(*more: object) -> tuple[int, dict[str, Any], str]:
        done = CliRunner().invoke(app, [str(one) for one in (*command, *more)])
        return done.exit_code, json.loads(done.stdout), done.stderr

    code, foretold, told = called("--dry-run")
    assert (code, foretold["done"], foretold["todo"], foretold["sampled"]) == (3, 0, 5, 3)
    assert list(foretold["quarantined"]) == ["patient_001_node_0"]
    assert "patient_001_node_0: would be quarantined" in told
    assert re.search(r"5 slides to analyse, 0 are finished: would take about 0:\d\d:\d\d .* and .* MB", told)
    assert not (tmp_path / "out").exists()
    code, real, _ = called()
    assert (code, real["slides"], list(real["quarantined"])) == (3, 5, ["patient_001_node_0"])
    stored = [path for kind in ("heatmaps", "overlays") for path in (tmp_path / "out" / kind).rglob("*")]
    size = sum(path.stat().st_size for path in stored if path.is_file())
    assert 1 / 3 < foretold["bytes"] / size < 3
    assert foretold["seconds"] > 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    code, again, _ = called("--dry-run")
    assert (again["done"], again["todo"], again["bytes"]) == (5, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert called("--dry-run", "--threshold", 0.3, "--overwrite")[1]["todo"] == 5


def test_an_estimate_is_the_mean_of_the_sample_times_what_is_left() -> None:
    one = Sampled(tissue_share=0.2, once_s=1.0, per_mm2_s=0.5, once_bytes=1000, per_mm2_bytes=10.0)
    other = Sampled(tissue_share=0.4, once_s=3.0, per_mm2_s=0.7, once_bytes=3000, per_mm2_bytes=30.0)
    found = Rehearsal(done=(), todo={"a": 100.0, "b": 300.0}, faults={}, sampled=(one, other), workers=2)
    assert found.tissue_mm2 == pytest.approx(400 * 0.3)
    assert found.seconds == pytest.approx((2 * 2.0 + 120 * 0.6) / 2)
    assert found.bytes == pytest.approx(2 * 2000 + 120 * 20)
    unknown = Rehearsal(done=(), todo={"a": 100.0}, faults={})
    assert (unknown.to_json()["seconds"], unknown.to_json()["bytes"]) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out", "out.zarr", "out.parquet"])
def test_a_dry_run_foretells_patches(tmp_path: Path, output: str) -> None:
    generate_cohort(tmp_path / "cohort", patients=1, centres=(0,), seed=7, mpp=8.0)
    cohort = tmp_path / "cohort"
    command = ["patches", cohort / "images", cohort / "annotations", "-r", cohort / "stage_labels.csv"]
    command += ["-o", tmp_path / output, "--mpp", 8, "--size", 64, "--tumour", 0, "--normal", 4, "--workers", 1]

    def called(*more: object) -> dict[str, Any]:
        done = CliRunner().invoke(app, [str(one) for one in (*command, *more)], catch_exceptions=False)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    before = sorted(tmp_path.iterdir())
    foretold = called("--dry-run")
    assert sorted(tmp_path.iterdir()) == before
    assert (foretold["slides"], foretold["sampled"]) == (5, 3)
    assert foretold["wanted"] == {"tumour": 0, "normal": 20, "hard": 0}
    real = called()
    assert foretold["count"] == pytest.approx(real["count"], rel=0.2)
    assert 1 / 3 < foretold["bytes"] / real["bytes"] < 3
