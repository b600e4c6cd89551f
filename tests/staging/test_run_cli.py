"""``sentinode run`` as it is called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_checkpoint import fresh
from typer.testing import CliRunner, Result

from staging.cli import app
from staging.phantom import generate_cohort
from wsi.cnn.checkpoint import save_checkpoint
from wsi.writing.pyramid import write_pyramid


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Two of a patient's five slides, and one whose name gives no patient."""
    image = np.full((256, 256, 3), 243, np.uint8)
    image[60:200, 60:200] = (200, 120, 170)
    (tmp_path / "slides").mkdir()
    for name in ("patient_000_node_0", "patient_000_node_1", "elsewhere"):
        path = tmp_path / "slides" / f"{name}.tif"
        write_pyramid(path, width=256, height=256, mpp=2.0, tile_size=256, tiles=[image])
    return tmp_path / "slides"


def sentinode(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu", "--workers", "1"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_a_cohort_of_which_no_patient_can_be_staged_ends_with_the_reason(slides: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", fresh())
    reference = tmp_path / "stage_labels.csv"
    reference.write_text("patient,stage\npatient_000.zip,pN0\npatient_001.zip,pN1\n")
    call = ("run", slides, "-o", tmp_path / "out", "-m", tmp_path / "model.safetensors", "--reference", reference)
    done = sentinode(*call)
    assert done.exit_code == 3, done.output
    first, _ = done.stderr.split("\n", 1)
    assert "will not be staged" in first
    assert "patient_000 (missing node_2, node_3, node_4)" in first
    found = json.loads(done.stdout)
    assert (found["slides"], found["kappa"], found["quarantined"]) == (3, None, {})
    assert set(found["unscored"]) == {"patient_000", "elsewhere"}
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    assert (score["patients"], score["unscored"], score["complete"]) == (0, ["patient_000"], False)
    assert "no patient was scored" in (tmp_path / "out" / "report.html").read_text()
    assert sentinode(*call).exit_code == 3


def test_what_is_skipped_is_said_everywhere(slides: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", fresh())
    (slides / "notes.txt").touch()
    (slides / "b.tif").mkdir()
    Path(os.fsdecode(os.fsencode(slides) + b"/\xff.txt")).touch()
    done = sentinode("run", slides, "-o", tmp_path / "out", "-m", tmp_path / "model.safetensors")
    said = "skipped: 1 folder with the name of a slide (b.tif); 2 of unknown suffix (notes.txt, \\udcff.txt)"
    assert done.stderr.count(said) == 1
    assert set(json.loads(done.stdout)["skipped"]) == {"of unknown suffix", "folder with the name of a slide"}
    assert "notes.txt,of unknown suffix" in (tmp_path / "out" / "skipped.csv").read_text()
    assert "notes.txt" in (tmp_path / "out" / "report.html").read_text()


def test_a_patient_that_is_not_staged_ends_with_3(slides: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", fresh())
    call = ("run", slides, "-o", tmp_path / "out", "-m", tmp_path / "model.safetensors")
    assert sentinode(*call).exit_code == 3
    strangers = ("run", slides / "elsewhere.tif", "-o", tmp_path / "else", "-m", tmp_path / "model.safetensors")
    assert sentinode(*strangers).exit_code == 0  # a slide of no known patient is no patient


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupt_is_one_line_and_the_next_call_goes_on(tmp_path: Path, workers: str) -> None:
    generate_cohort(tmp_path / "cohort", patients=1, centres=(0,), seed=7, mpp=2.0, size_um=(4500, 3500))
    save_checkpoint(tmp_path / "m.safetensors", fresh())
    call = [
        "run",
        str(tmp_path / "cohort" / "images"),
        "-o",
        str(tmp_path / "out"),
        "-m",
        str(tmp_path / "m.safetensors"),
    ]
    command = [sys.executable, "-m", "staging", *call, "--workers", workers]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stderr is not None
        first = running.stderr.readline()  # the first slide is done
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        rest = running.stderr.read().splitlines()
    assert (running.returncode, "slides 1/5" in first) == (130, True)
    assert [line for line in rest if not line.startswith("slides ")] == [
        "sentinode: interrupted; a command that resumes goes on from here when it is called again"
    ]
    assert sentinode(*call).exit_code == 0
