"""A demonstration replaces an earlier one if asked, and nothing else."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import staging.demo
from staging.cli import app
from staging.errors import ConfigurationError
from staging.phantom import SlideTruth, forget_cohort
from wsi.store import DONE, publish

MADE = [
    "training/images/patient_000_node_0.tif",
    "training/annotations/patient_000_node_0.xml",
    "training/stage_labels.csv",
    "test/images/patient_081_node_4.tif",
    "model.safetensors",
    "model.patches.parquet",
    "model.round1.learning.png",
    "model.csv",
    "results/slides/patient_081_node_4.json",
    "results/overlays/patient_081_node_4.png",
    "results/quarantine.csv",
]
MINE = ["notes.txt", "training/images/mine.tif", "model.txt", "models.csv", "results/mine.csv", "results/lesions/a.xml"]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of an earlier demonstration, with files of others in it."""
    for name in (*MADE, *MINE, ".sentinode-demo"):
        (tmp_path / "demo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "demo" / name).write_text("{}")
    with publish(tmp_path / "demo" / "results" / "heatmaps" / "patient_081_node_4.zarr", {}, kind="heatmap") as work:
        (work / "a").write_text("a")

    def reached(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(staging.demo, "run_demo", reached)
    return tmp_path / "demo"


def test_only_what_a_demonstration_made_is_removed(demo: Path) -> None:
    CliRunner().invoke(app, ["demo", "-o", str(demo), "--overwrite"])
    left = {str(path.relative_to(demo)) for path in demo.rglob("*") if path.is_file()}
    assert left == {*MINE, ".sentinode-demo"}
    assert not list(demo.rglob(DONE))


def test_an_earlier_demonstration_is_kept_unless_asked(demo: Path) -> None:
    before = sorted(demo.rglob("*"))
    with pytest.raises(ConfigurationError, match="--overwrite"):
        CliRunner().invoke(app, ["demo", "-o", str(demo)], catch_exceptions=False)
    (demo / ".sentinode-demo").unlink()
    with pytest.raises(ConfigurationError, match="other than a demo"):
        CliRunner().invoke(app, ["demo", "-o", str(demo), "--overwrite"], catch_exceptions=False)
    assert sorted([*demo.rglob("*"), demo / ".sentinode-demo"]) == before


def test_a_finished_cohort_is_forgotten_by_its_truth(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("patient_000_node_0", "patient_000_node_1"):
        (tmp_path / "images" / f"{name}.tif").touch()
    slide = dict.fromkeys((field.name for field in fields(SlideTruth)), 0) | {"name": "patient_000_node_0"}
    truth = {"seed": 0, "stages": {}, "slides": [slide]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    forget_cohort(tmp_path)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["patient_000_node_1.tif"]


@pytest.mark.parametrize(
    "truth",
    ['{"mine": 1}', "{}", "[]", '{"slides": [{"name": "../../victim"}, {"name": "*"}]}', '{"slides": [{"name": "a"}]}'],
)
def test_a_cohort_of_others_is_never_removed(tmp_path: Path, truth: str) -> None:
    """As CAMELYON17 lies on a disk, with a truth.json that is someone else's."""
    folder, victim = tmp_path / "deep" / "cohort", tmp_path / "victim.tif"
    (folder / "images").mkdir(parents=True)
    for path in (folder / "images" / "patient_017_node_1.tif", folder / "stage_labels.csv", victim):
        path.write_text("real")
    (folder / "truth.json").write_text(truth)
    command = ["phantom", str(folder), "--patient-count", "1", "--centres", "0", "--mpp", "8", "--overwrite"]
    with pytest.raises(ConfigurationError, match="is not an empty directory"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert (folder / "images" / "patient_017_node_1.tif").read_text() == victim.read_text() == "real"
    assert (folder / "truth.json").read_text() == truth


@pytest.mark.slow
def test_an_earlier_cohort_is_replaced_only_if_asked(tmp_path: Path) -> None:
    command = [
        "phantom",
        str(tmp_path),
        "--patient-count",
        "1",
        "--centres",
        "0",
        "--mpp",
        "8",
        "--workers",
        "1",
        "--seed",
    ]
    assert CliRunner().invoke(app, [*command, "7"], catch_exceptions=False).exit_code == 0
    (tmp_path / "images" / "mine.tif").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("[!.]*.*")}
    with pytest.raises(ConfigurationError, match="--overwrite"):
        CliRunner().invoke(app, [*command, "8"], catch_exceptions=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("[!.]*.*")} == before
    assert CliRunner().invoke(app, [*command, "8", "--overwrite"], catch_exceptions=False).exit_code == 0
    after = {path: path.read_bytes() for path in tmp_path.rglob("[!.]*.*")}
    assert [path.name for path in after if after[path] == before.get(path)] == ["mine.tif"]
