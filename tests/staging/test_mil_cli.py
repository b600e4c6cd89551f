"""``sentinode mil``: from features and labels to heads, tables and attention."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from feature_files import PixelSlide, write_slide
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner, Result

from staging.cohorts.camelyon import read_label_table
from staging.cohorts.node_tables import read_label_probabilities
from staging.cohorts.references import read_predictions
from staging.cohorts.staged import stage_table
from staging.commands.mil import app
from staging.errors import ConfigurationError, ConflictError, DuplicateSlideError, NoSlidesError, TableError
from staging.lesions.tables import read_seen
from staging.training.mil import judge_slides, train_mil
from wsi.cnn.encoders.attention import read_attention
from wsi.cnn.encoders.mil_training import MilTraining
from wsi.coverage import Coverage
from wsi.errors import ArtefactError, OutputExistsError, PathologyError
from wsi.store import provenance_of, publish

pytestmark = pytest.mark.slow  # its fixtures take seconds


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of six patients with two slides each; the even patients' first slides are positive."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = []
    for number in range(12):
        patient, node = divmod(number, 2)
        is_positive = patient % 2 == 0 and node == 0
        name = f"patient_{patient:03d}_node_{node}"
        write_slide(folder, name, PixelSlide(number, is_positive=is_positive))
        rows.append(f"{name}.tif,{('itc', 'macro')[patient % 4 // 2] if is_positive else 'negative'}")
    (folder / "reference.csv").write_text("\n".join(["slide,label", *rows]) + "\n")
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("classes", ["2", "4"])
def test_from_features_and_labels_to_a_scored_table(tmp_path: Path, cohort: Path, classes: str) -> None:
    head, judged = tmp_path / "head.safetensors", tmp_path / "judged"
    reference = cohort / "reference.csv"
    result = call("train", cohort, reference, "-o", head, "--classes", classes, "--epochs", 40, "--folds", 2)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["patients"], told["slides_without_patient"], told["quarantined"]) == (6, 0, {})
    assert sum(told["slides"].values()) == 12
    unseen = read_predictions(head.with_suffix(".unseen.csv"))
    truth = [line.rpartition(",")[2] != "negative" for line in reference.read_text().splitlines()[1:]]
    assert told["auc_unseen"] == pytest.approx(roc_auc_score(truth, list(unseen.values())), abs=1e-4)

    applied = call("apply", head, cohort, "-o", judged)
    assert applied.exit_code == 0, applied.output
    found = read_predictions(judged / "probabilities.csv")
    assert len(found) == 12
    assert roc_auc_score(truth, list(found.values())) == 1
    with (judged / "probabilities.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = ("positive",) if classes == "2" else ("itc", "micro", "macro")
    for row in rows:
        assert float(row["probability"]) == pytest.approx(sum(float(row[kind]) for kind in kinds), abs=1e-6)
        assert row["label"] == max(("negative", *kinds), key=lambda kind: float(row[kind]))
    assert json.loads(applied.stdout)["trained_on"] == 12
    assert "trained on 12 of these 12 slides" in applied.stderr
    attention = read_attention(judged / "attention" / "patient_000_node_0.zarr").array
    is_key = np.zeros((10, 12), bool)
    is_key[0, :4] = True
    assert roc_auc_score(is_key.ravel(), attention.ravel()) > 0.9
    assert (judged / "attention" / "patient_000_node_0.png").is_file()


def test_unseen_slides_can_be_staged(tmp_path: Path, cohort: Path) -> None:
    head = tmp_path / "head.safetensors"
    result = call("train", cohort, cohort / "reference.csv", "-o", head, "--classes", 4, "--epochs", 2)
    assert result.exit_code == 0, result.output
    table = head.with_suffix(".unseen.csv")
    shares = read_label_probabilities(table)
    assert shares is not None
    assert len(shares) == 12
    labels = read_label_table(table)
    for slide, of_label in shares.items():
        assert labels[slide].rank == int(np.argmax(of_label))


def test_values_go_in_and_come_out(tmp_path: Path, cohort: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = train_mil(
        [cohort],
        cohort / "reference.csv",
        tmp_path / "head.safetensors",
        classes=4,
        options=MilTraining(rounds=2, folds=2),
        device="cpu",
        on_round=lambda done, total: seen.append((done, total)),
    )
    assert made.slides == {"negative": 9, "itc": 2, "micro": 0, "macro": 1}
    assert (made.patients, made.without_patient, made.folds) == (6, 0, 2)
    assert (dict(made.left_out), made.without_features, dict(made.quarantined)) == ({}, (), {})
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))
    judged = judge_slides(made.head, [cohort / "patient_000_node_0.zarr"], tmp_path / "out", device="cpu")
    assert (judged.slides, judged.trained_on, dict(judged.quarantined)) == (1, 1, {})
    assert list(read_predictions(judged.table)) == ["patient_000_node_0"]


def trained_head(path: Path, cohort: Path, *more: object) -> Path:
    assert call("train", cohort, cohort / "reference.csv", "-o", path, "--epochs", 2, *more).exit_code == 0
    return path


def test_bad_features_never_stop_the_others(tmp_path: Path, cohort: Path) -> None:
    head, folder, judged = trained_head(tmp_path / "head.safetensors", cohort), tmp_path / "features", tmp_path / "out"
    for number, name in enumerate(("good", "late", "nan", "narrow")):
        write_slide(folder, name, PixelSlide(number, is_positive=False))
    applied = call("apply", head, folder, "-o", judged)
    assert applied.exit_code == 0, applied.output
    assert (judged / "attention" / "late.png").is_file()
    before = (judged / "attention" / "good.png").read_bytes()

    write_slide(folder, "other", PixelSlide(2, is_positive=False), digest="another encoder")
    (folder / "empty.zarr").mkdir()
    next(file for file in (folder / "late.zarr" / "features").rglob("*") if file.is_file()).write_bytes(b"")
    replaced(folder / "nan.zarr", np.full((120, 9), np.nan, np.float32))
    replaced(folder / "narrow.zarr", np.zeros((120, 8), np.float32))
    applied = call("apply", head, folder, "-o", judged)
    assert applied.exit_code == 3, applied.output
    told = json.loads(applied.stdout)
    assert (told["slides"], told["trained_on"]) == (1, 0)
    reasons = {
        "other": "encoder.sha256",
        "empty": "DONE.json",
        "late": "another size",
        "nan": "NaN",
        "narrow": "has 8 features per tile, but the head takes 9",
    }
    assert told["quarantined"].keys() == reasons.keys()
    for name, words in reasons.items():
        assert words in told["quarantined"][name]
    assert list(read_predictions(judged / "probabilities.csv")) == ["good"]
    # nothing tells of the others what an earlier call found
    assert sorted(entry.name for entry in (judged / "attention").iterdir()) == ["good.png", "good.zarr"]
    assert (judged / "attention" / "good.png").read_bytes() == before


def test_what_was_not_seen_is_neither_learnt_nor_classified(tmp_path: Path, cohort: Path) -> None:
    """A slide of which a tenth was seen, one seen whole, and twelve that do not say."""
    folder, head = tmp_path / "features", tmp_path / "head.safetensors"
    shutil.copytree(cohort, folder)
    whole, partly = "patient_006_node_0", "patient_006_node_1"
    write_slide(folder, whole, PixelSlide(20, is_positive=False), coverage=Coverage(tissue_mm2=30.0, looked_mm2=30.0))
    write_slide(folder, partly, PixelSlide(21, is_positive=False), coverage=Coverage(tissue_mm2=30.0, looked_mm2=3.0))
    reference = folder / "reference.csv"
    reference.write_text(reference.read_text() + f"{whole}.tif,negative\n{partly}.tif,negative\n")
    trained = call("train", folder, reference, "-o", head, "--epochs", 1, "--classes", 4)
    told = json.loads(trained.stdout)
    assert (trained.exit_code, sum(told["slides"].values())) == (3, 13)
    assert "3.00 of 30.00 mm2 of tissue were looked at" in told["quarantined"][partly]
    assert partly not in head.with_suffix(".unseen.csv").read_text()

    applied = call("apply", head, folder, "-o", tmp_path / "judged")
    told = json.loads(applied.stdout)
    assert (applied.exit_code, list(told["quarantined"]), len(told["unknown"])) == (3, [partly], 12)
    table = tmp_path / "judged" / "probabilities.csv"
    assert partly not in table.read_text()
    allowed = call("apply", head, folder, "-o", tmp_path / "judged", "--allow-partial")
    assert (allowed.exit_code, json.loads(allowed.stdout)["partial"]) == (0, [partly])
    assert {slide: one.seen for slide, one in read_seen(table).items() if one.seen != "unknown"} == {
        whole: "whole",
        partly: "partial",
    }
    staged = stage_table(table, tmp_path / "stages.csv", expected_nodes=2)
    assert staged.staging.at_least == {"patient_006"}


def replaced(path: Path, features: np.ndarray) -> None:
    """Published features as another program may write them: the digests fit."""
    made_from = provenance_of(path)
    assert made_from is not None
    with publish(path.with_name("new.zarr"), made_from, kind="feature table") as work:
        shutil.copytree(path, work, dirs_exist_ok=True)
        (work / "DONE.json").unlink()
        group: Any = zarr.open_group(work, mode="r+")
        del group["features"]
        group.create_array("features", shape=features.shape, dtype="float32", chunks=features.shape)[...] = features
    shutil.rmtree(path)
    path.with_name("new.zarr").rename(path)


def test_unusable_features_end_a_training(tmp_path: Path, cohort: Path) -> None:
    folder, labels = tmp_path / "features", tmp_path / "labels.csv"
    write_slide(folder, "good", PixelSlide(1, is_positive=False))
    write_slide(folder, "other", PixelSlide(2, is_positive=False), digest="another encoder")
    labels.write_text("slide,label\ngood,negative\nother,macro\n")
    mixed = call("train", folder, labels, "-o", tmp_path / "h")
    assert isinstance(mixed.exception, ArtefactError)
    (folder / "other.zarr" / "DONE.json").unlink()
    (folder / "good.zarr" / "DONE.json").unlink()
    none = call("train", folder, labels, "-o", tmp_path / "h")
    assert isinstance(none.exception, NoSlidesError)
    assert "good: has no complete features" in str(none.exception)
    folder = tmp_path / "cohort"
    shutil.copytree(cohort, folder)
    replaced(folder / "patient_003_node_1.zarr", np.full((120, 9), np.nan, np.float32))
    ended = call("train", folder, folder / "reference.csv", "-o", tmp_path / "h", "--epochs", 1)
    assert isinstance(ended.exception, ArtefactError)
    assert "patient_003_node_1.zarr: holds NaN" in str(ended.exception)
    assert not (tmp_path / "h").exists()


def test_too_few_patients_or_labels_end_in_one_error(tmp_path: Path, cohort: Path) -> None:
    one = cohort / "patient_000_node_0.zarr"
    for features, labels in ((one, "patient_000_node_0,macro"), (cohort, "patient_001_node_0,negative")):
        (tmp_path / "labels.csv").write_text(f"slide,label\n{labels}\n")
        result = call("train", features, tmp_path / "labels.csv", "-o", tmp_path / "h")
        assert isinstance(result.exception, PathologyError)
        assert "at least two of each" in str(result.exception)


def test_wrong_usage_is_told_before_anything_is_read(tmp_path: Path, cohort: Path) -> None:
    nowhere, head = tmp_path / "nowhere", trained_head(tmp_path / "head.safetensors", cohort)
    absent = call("train", nowhere, nowhere, "-o", tmp_path / "h", "--device", "tpu")
    assert "no device 'tpu'" in str(absent.exception)
    absent = call("apply", head, nowhere, "-o", tmp_path / "out", "--device", "tpu")
    assert "no device 'tpu'" in str(absent.exception)
    assert isinstance(call("train", nowhere, nowhere, "-o", tmp_path).exception, OutputExistsError)
    assert not (tmp_path / "out").exists()


def test_an_output_of_another_head_is_refused(tmp_path: Path, cohort: Path) -> None:
    one = trained_head(tmp_path / "one.safetensors", cohort)
    other = trained_head(tmp_path / "other.safetensors", cohort, "--seed", 1, "--device", "cpu")
    assert call("apply", one, cohort, "-o", tmp_path / "out", "--device", "cpu").exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    refused = call("apply", other, cohort, "-o", tmp_path / "out")
    assert isinstance(refused.exception, ConfigurationError)
    assert "head: " in str(refused.exception)
    assert call("apply", one, cohort, "-o", tmp_path / "out").exit_code == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_slides_that_leave_the_table_are_named(tmp_path: Path, cohort: Path) -> None:
    head = trained_head(tmp_path / "one.safetensors", cohort)
    assert call("apply", head, cohort, "-o", tmp_path / "out").exit_code == 0
    again = call("apply", head, *sorted(cohort.glob("*.zarr"))[:10], "-o", tmp_path / "out")
    assert "of the earlier table patient_005_node_0, patient_005_node_1 are no longer there" in again.stderr


def test_quiet_training_says_nothing(tmp_path: Path, cohort: Path) -> None:
    shown = ("train", cohort, cohort / "reference.csv", "--epochs", 2, "--folds", 2)
    assert "epochs" in call(*shown, "-o", tmp_path / "a.safetensors").stderr
    assert "epochs" not in call(*shown, "-o", tmp_path / "b.safetensors", "-q").stderr


def test_slides_without_a_label_or_patient_are_told(tmp_path: Path, cohort: Path) -> None:
    labels = [line for line in (cohort / "reference.csv").read_text().splitlines() if "005_node_1" not in line]
    (tmp_path / "labels.csv").write_text("\n".join([*labels, "Elsewhere.tif,macro"]))
    patients = "\n".join(f"patient_00{number}_node_{node},P{number}" for number in range(6) for node in range(2))
    (tmp_path / "patients.csv").write_text(f"slide,patient\n{patients}\n")
    arguments = ["train", cohort, tmp_path / "labels.csv", "-o", tmp_path / "h.safetensors", "--epochs", 1]
    told = json.loads(call(*arguments, "--patients", tmp_path / "patients.csv").stdout)
    assert told["left_out"] == {"patient_005_node_1": "the reference has no label for it"}
    assert (told["patients"], sum(told["slides"].values())) == (6, 11)
    assert told["without_features"] == ["elsewhere"]
    assert isinstance(call(*arguments).exception, OutputExistsError)
    arguments.append("--overwrite")
    (tmp_path / "patients.csv").write_text("a,P1\nA,P2\n")
    result = call(*arguments, "--patients", tmp_path / "patients.csv")
    assert isinstance(result.exception, ConflictError)
    (tmp_path / "labels.csv").write_text("slide,label\nstranger,macro\n")
    assert isinstance(call(*arguments).exception, TableError)
    (tmp_path / "empty").mkdir()
    assert isinstance(call("train", tmp_path / "empty", *arguments[2:]).exception, NoSlidesError)
    assert isinstance(call("train", cohort, cohort, *arguments[2:]).exception, DuplicateSlideError)
