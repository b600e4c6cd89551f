from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from staging.cli import app
from staging.stages.pn import PatientStage
from wsi.cnn.checkpoint import save_checkpoint
from wsi.heatmap_store import read_heatmap

pytestmark = pytest.mark.slow  # its fixtures take seconds


def sentinode(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "staging", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def refused(code: int, *arguments: str | Path) -> str:
    """The one line that a user's mistake is answered with."""
    done = sentinode(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("sentinode: error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Any]) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_checkpoint(path, make_checkpoint(mpp=2.0, seed=1))
    return path


def commands() -> list[str]:
    return [*(command.name or "" for command in app.registered_commands), "score kappa"]


@pytest.mark.parametrize("name", commands())
def test_every_command_shows_an_example(name: str) -> None:
    done = sentinode(*name.split(), "--help")
    assert done.returncode == 0
    assert f"Example: sentinode {name} " in " ".join(done.stdout.replace("│", " ").split())


def test_all_commands_are_there() -> None:
    asked = ["info", "tissue", "phantom", "patches", "train", "heatmap", "lesions", "label", "stage", "run", "demo"]
    assert {*asked, "convert", "score kappa"} <= set(commands())


def test_help_loads_nothing_slow() -> None:
    slow = ("torch", "scipy", "numpy", "dask", "zarr", "lxml")
    script = f"import sys, staging.cli; print([name for name in {slow} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_info_of_a_real_slide(real_data: Callable[[str], Path]) -> None:
    done = sentinode("info", real_data("slides/CMU-1-Small-Region.svs"), "--json")
    facts = json.loads(done.stdout)
    assert (facts["width"], facts["height"], facts["mpp"]) == (2220, 2967, 0.499)
    assert facts["levels"][0]["tile_width"] == 240


def test_tissue_and_heatmap_of_a_real_slide(real_data: Callable[[str], Path], model: Path, tmp_path: Path) -> None:
    slide = real_data("slides/CMU-1-Small-Region.svs")
    tissue = json.loads(sentinode("tissue", slide, "-o", tmp_path / "tissue.png").stdout)
    assert 0.3 < tissue["fraction"] < 0.6
    assert (tissue["stored"]["missing_tiles"], tissue["stored"]["share"]) == (0, 1.0)
    done = sentinode(
        "heatmap",
        slide,
        "-m",
        model,
        "-o",
        tmp_path / "heat.zarr",
        "--overlay",
        tmp_path / "heat.png",
        "--device",
        "cpu",
    )
    facts = json.loads(done.stdout)
    heatmap = read_heatmap(tmp_path / "heat.zarr")
    assert heatmap.frame.shape == (facts["rows"], facts["columns"])
    assert heatmap.frame.pixel_um == pytest.approx(16.0)
    width_um, height_um = 2220 * 0.499, 2967 * 0.499
    assert heatmap.frame.shape == (int(np.ceil(height_um / 16)), int(np.ceil(width_um / 16)))
    assert (tmp_path / "heat.png").stat().st_size > 10_000


def test_the_organisers_table_is_staged_and_scored(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    table = real_data("tables/camelyon17_stage_labels.csv")
    staged = json.loads(sentinode("stage", table, "-o", tmp_path / "stages.csv").stdout)
    assert staged["patients"] == 100
    assert (tmp_path / "stages.csv").read_text().split() == table.read_text().split()
    score = json.loads(sentinode("score", "kappa", table, tmp_path / "stages.csv").stdout)
    assert score["kappa"] == 1.0
    assert score["patients"] == 100
    assert score["stages"] == [stage.value for stage in PatientStage]
    assert np.trace(np.array(score["confusion"])) == 100
    assert len(score["interval"]) == 2


def test_a_patient_with_four_nodes_is_not_staged(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    rows = [f"patient_001_node_{node},macro" for node in range(4)] + [
        f"patient_002_node_{node},itc" for node in range(5)
    ]
    table.write_text("slide,label\n" + "\n".join(rows) + "\n")
    done = sentinode("stage", table, "-o", tmp_path / "stages.csv")
    assert done.returncode == 3
    assert "node_4" in json.loads(done.stdout)["unscored"]["patient_001"]
    text = (tmp_path / "stages.csv").read_text()
    assert "patient_001.zip" not in text
    assert "patient_002.zip,pN0(i+)" in text


def test_an_unknown_label_names_its_line_and_the_known_ones(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("slide,label\npatient_001_node_0,macro\npatient_001_node_1,benign\n")
    line = refused(1, "stage", table, "-o", tmp_path / "stages.csv")
    assert "line 3" in line
    assert "benign" in line
    assert "negative, itc, micro, macro" in line


def test_a_submission_that_lacks_a_patient(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    table = real_data("tables/camelyon17_stage_labels.csv")
    short = tmp_path / "short.csv"
    short.write_text("".join(line for line in table.read_text().splitlines(True) if "patient_042" not in line))
    assert "patient_042" in refused(1, "score", "kappa", table, short)


@pytest.mark.parametrize("name", ["unopenable.tiff", "unreadable.svs"])
def test_a_slide_that_is_none(name: str, real_data: Callable[[str], Path], tmp_path: Path) -> None:
    assert name in refused(1, "tissue", real_data(f"slides/{name}"), "-o", tmp_path / "tissue.png")


def test_no_resolution_asks_for_it(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    line = refused(1, "tissue", real_data("slides/boxes.tiff"), "-o", tmp_path / "tissue.png")
    assert "--slide-mpp" in line
    done = sentinode("tissue", real_data("slides/boxes.tiff"), "-o", tmp_path / "tissue.png", "--slide-mpp", "4")
    assert done.returncode == 0


def test_missing_and_empty_inputs(model: Path, tmp_path: Path) -> None:
    assert "nowhere.tif" in refused(1, "info", tmp_path / "nowhere.tif")
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(1, "run", tmp_path / "empty", "-o", tmp_path / "out", "-m", model)
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_no_model(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    pickled = tmp_path / "model.pt"
    torch.save({"weights": torch.zeros(3)}, pickled)
    line = refused(
        1, "run", real_data("slides/CMU-1-Small-Region.svs"), "-o", tmp_path / "out", "-m", pickled, "--device", "cpu"
    )
    assert "model.pt" in line
    assert not (tmp_path / "out").exists()


def test_a_run_beside_bad_slides_ends_with_three(real_data: Callable[[str], Path], model: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in ("CMU-1-Small-Region.svs", "unopenable.tiff", "unreadable.svs"):
        shutil.copy(real_data(f"slides/{name}"), slides)
    arguments: list[str | Path] = [
        "run",
        slides,
        "-o",
        tmp_path / "out",
        "-m",
        model,
        "--device",
        "cpu",
        "--workers",
        "1",
    ]
    done = sentinode(*arguments)
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert set(result["quarantined"]) == {"unopenable", "unreadable"}
    assert result["slides"] == 1
    changed = refused(2, *arguments, "--threshold", "0.7")
    assert "threshold: 0.5 -> 0.7" in changed


def test_the_steps_give_what_the_run_gives(tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    made = json.loads(
        sentinode("phantom", cohort, "--patient-count", "1", "--centres", "4", "--seed", "5", "--mpp", "8").stdout
    )
    assert made["slides"] == 5
    assert "not an empty directory" in refused(2, "phantom", cohort)
    patches = tmp_path / "patches.zarr"
    done = sentinode(
        "patches",
        cohort / "images",
        "-a",
        cohort / "annotations",
        "-r",
        cohort / "stage_labels.csv",
        "-o",
        patches,
        "--mpp",
        "8",
        "--size",
        "112",
        "--tumour",
        "8",
        "--normal",
        "8",
        "--workers",
        "1",
    )
    assert json.loads(done.stdout)["slides"] == 5, done.stderr
    trained = tmp_path / "trained.safetensors"
    done = sentinode("train", patches, "-o", trained, "--epochs", "1", "--device", "cpu")
    assert json.loads(done.stdout)["mpp"] == 8.0, done.stderr
    out = tmp_path / "out"
    done = sentinode("run", cohort / "images", "-o", out, "-m", trained, "--peak", "0.3", "--threshold", "0.3")
    assert done.returncode == 0, done.stderr
    stepped = tmp_path / "stepped"
    heatmaps = sorted((out / "heatmaps").glob("*.zarr"))
    sentinode("lesions", *heatmaps, "-o", stepped, "--threshold", "0.3", "--peak", "0.3")
    assert (stepped / "lesions.csv").read_bytes() == (out / "lesions.csv").read_bytes()
    sentinode("label", stepped / "lesions.csv", "--heatmaps", out / "heatmaps", "-o", stepped / "labels.csv")
    first, second = ((path / "labels.csv").read_text().splitlines() for path in (stepped, out))
    assert [line.split(",")[:4] for line in first] == [line.split(",")[:4] for line in second]
    sentinode("stage", stepped / "labels.csv", "-o", stepped / "stages.csv")
    assert (stepped / "stages.csv").read_bytes() == (out / "stages.csv").read_bytes()
