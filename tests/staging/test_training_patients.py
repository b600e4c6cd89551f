"""A model applied to what it was trained on, or that learnt nothing, is said to be so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_checkpoint import fresh
from typer.testing import CliRunner

from staging.cli import app
from staging.cohorts.training_patients import PATIENTS, trained_on, training_patients
from staging.stages.pn import BY_NAME
from staging.training.doubts import at_its_bound, best_at_the_end, near_chance, worse_than_begun
from wsi.cnn.checkpoint import save_checkpoint
from wsi.writing.pyramid import write_pyramid


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    image = np.full((256, 256, 3), 243, np.uint8)
    image[60:200, 60:200] = (200, 120, 170)
    (tmp_path / "slides").mkdir()
    for name in ("patient_003_node_0", "patient_004_node_0", "elsewhere"):
        write_pyramid(tmp_path / "slides" / f"{name}.tif", width=256, height=256, mpp=2.0, tile_size=256, tiles=[image])
    return tmp_path / "slides"


def test_slides_of_training_patients_are_counted() -> None:
    known = training_patients({PATIENTS: ["patient_003", "elsewhere"]})
    names = ["patient_003_node_1", "PATIENT_003_NODE_0.tif", "patient_004_node_0", "elsewhere", "else"]
    assert trained_on(names, known, BY_NAME) == ["patient_003_node_1", "PATIENT_003_NODE_0.tif", "elsewhere"]
    assert training_patients({}) == training_patients({PATIENTS: 7}) == frozenset()


def test_it_is_said_everywhere(slides: Path, tmp_path: Path) -> None:
    model, labels = tmp_path / "m.safetensors", tmp_path / "labels.csv"
    save_checkpoint(model, fresh(provenance={PATIENTS: ["patient_003"]}))
    labels.write_text("patient,stage\npatient_003.zip,pN0\npatient_004.zip,pN0\n")
    command = ["run", slides, "-o", tmp_path / "out", "-m", model, "-r", labels, "--nodes", 1, "--workers", 1]
    done = CliRunner().invoke(app, [str(one) for one in command])
    assert "the model was trained on patients of 1 of these 3 slides" in done.stderr
    assert json.loads(done.stdout)["trained_on"] == 1
    assert "trained on patients of 1 of these 3 slides" in (tmp_path / "out" / "report.html").read_text()
    for name, is_known in (("patient_003_node_0", True), ("patient_004_node_0", False)):
        single = ["heatmap", slides / f"{name}.tif", "-o", tmp_path / f"{name}.zarr", "-m", model]
        told = json.loads(CliRunner().invoke(app, [str(one) for one in single]).stdout)["warnings"]
        assert ("is of a patient that the model was trained on" in told) is is_known


def test_what_learnt_nothing_is_doubted() -> None:
    assert "is 0.43, near chance" in near_chance(0.43)[0]
    assert near_chance(None) == near_chance(0.9) == ()
    assert "its bound (0.25)" in at_its_bound(0.25)[0]
    assert "its bound (10)" in at_its_bound(10.0)[0]
    assert at_its_bound(1.0) == ()
    assert "does better on the held-out patients (loss 0.2000, now 0.3000" in worse_than_begun(0.2, 0.3)[0]
    assert worse_than_begun(0.3, 0.3) == worse_than_begun(None, 0.3) == worse_than_begun(0.3, None) == ()
    assert "the best pass is the last" in best_at_the_end(4, 5)[0]
    assert best_at_the_end(3, 5) == best_at_the_end(0, 1) == ()
