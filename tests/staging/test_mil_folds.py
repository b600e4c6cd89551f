"""``sentinode mil cross-validate``: every patient staged by heads that never saw the centre."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_files import PixelSlide, write_slide
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner, Result

from staging.cli import app
from staging.cohorts.camelyon import read_stage_table, write_stage_table
from staging.errors import CohortError
from staging.lesions.labels import SlideLabel
from staging.stages.pn import BY_NAME, stage_patients
from wsi.coverage import Coverage

pytestmark = pytest.mark.slow  # its fixtures take seconds


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients of each of three centres; one of each has three macro-metastases, which the features show."""
    folder = tmp_path_factory.mktemp("cohort")
    labels = {}
    for number, patient in enumerate((0, 1, 20, 21, 40, 41)):
        for node in range(5):
            name = f"patient_{patient:03d}_node_{node}"
            labels[name] = SlideLabel.MACRO if patient % 20 == 0 and node < 3 else SlideLabel.NEGATIVE
            write_slide(
                folder / "features",
                name,
                PixelSlide(5 * number + node, is_positive=labels[name] is SlideLabel.MACRO),
                coverage=Coverage(tissue_mm2=1.0, looked_mm2=1.0),
            )
    write_stage_table(folder / "stage_labels.csv", stage_patients(labels).stages, labels, BY_NAME)
    return folder


def call(cohort: Path, output: Path, *options: object, reference: str = "stage_labels.csv") -> Result:
    words = (
        "mil",
        "cross-validate",
        cohort / "features",
        cohort / reference,
        "-o",
        output,
        "--device",
        "cpu",
        *options,
    )
    return CliRunner().invoke(app, [*map(str, words)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_one_centre_is_left_out_at_a_time(cohort: Path, tmp_path: Path) -> None:
    done = call(cohort, tmp_path / "folds", "--epochs", 60, "--seed", 1, "--leave-one-centre-out")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert [fold["centre"] for fold in record["folds"]] == ["CWZ", "RST", "UMCU"]
    assert [fold["slides"] for fold in record["folds"]] == [10, 10, 10]
    rows = rows_of(tmp_path / "folds" / "labels.csv")
    assert {row["fold"] for row in rows if row["slide"].startswith("patient_02")} == {"RST"}
    for row in rows:
        shares = [float(row[label.value]) for label in SlideLabel]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert row["label"] == list(SlideLabel)[int(np.argmax(shares))].value
        assert float(row["probability"]) == pytest.approx(1 - shares[0], abs=1e-5)
    labels = {row["slide"]: SlideLabel.parse(row["label"]) for row in rows}
    staged = read_stage_table(tmp_path / "folds" / "stages.csv").stages
    assert staged == stage_patients(labels).stages
    truth = read_stage_table(cohort / "stage_labels.csv").stages
    ranks = [[table[patient].rank for patient in truth] for table in (truth, staged)]
    kappa = cohen_kappa_score(*ranks, weights="quadratic", labels=range(5))
    assert record["stages"]["kappa"] == pytest.approx(kappa)
    assert kappa > 0.9  # the features show what there is
    assert set(record["stages"]["centres"]) == {"CWZ", "RST", "UMCU"}
    assert "quadratic kappa" in done.stderr
    assert "area " in done.stderr


def test_equal_calls_give_equal_tables_and_no_slide_sees_its_fold(cohort: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert call(cohort, tmp_path / name, "--epochs", 2, "--folds", 2).exit_code == 0
    one, other = (rows_of(tmp_path / name / "labels.csv") for name in ("one", "other"))
    assert one == other
    folds = {row["slide"].rpartition("_node_")[0]: set[str]() for row in one}
    for row in one:
        folds[row["slide"].rpartition("_node_")[0]].add(row["fold"])
    assert all(len(found) == 1 for found in folds.values())


def test_labels_alone_give_the_true_stages(cohort: Path, tmp_path: Path) -> None:
    rows = (cohort / "stage_labels.csv").read_text().splitlines()[1:]
    alone = ["slide,label", *(row for row in rows if "_node_" in row)]
    (cohort / "labels.csv").write_text("\n".join(alone) + "\n")
    records = [
        json.loads(call(cohort, tmp_path / Path(name).stem, "--epochs", 2, reference=name).stdout)
        for name in ("labels.csv", "stage_labels.csv")
    ]
    assert records[0]["stages"]["confusion"] == records[1]["stages"]["confusion"]


def test_what_is_not_used_is_said(cohort: Path, tmp_path: Path) -> None:
    reference = tmp_path / "some.csv"
    rows = (cohort / "stage_labels.csv").read_text().splitlines()
    reference.write_text(
        "\n".join([*(row for row in rows if "patient_041_node_4" not in row), "other_1.tif,itc"]) + "\n"
    )
    done = call(cohort, tmp_path / "folds", "--epochs", 2, reference=str(reference))
    assert done.exit_code == 0, done.output
    record: dict[str, Any] = json.loads(done.stdout)
    assert record["left_out"] == {"patient_041_node_4": "the reference has no label for it"}
    assert record["without_features"] == ["other_1"]
    assert list(record["unstaged"]) == ["patient_041"]
    assert record["stages"]["patients"] == 5
    assert "patient_041: not staged" in done.stderr


def test_slides_that_all_have_tumour_have_no_curve(cohort: Path, tmp_path: Path) -> None:
    reference = tmp_path / "tumour.csv"
    text = (cohort / "stage_labels.csv").read_text()
    rows = [row for row in text.splitlines()[1:] if "_node_" in row]
    reference.write_text("\n".join(["slide,label", *(row.replace("negative", "itc") for row in rows)]) + "\n")
    done = call(cohort, tmp_path / "folds", "--epochs", 2, reference=str(reference))
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["auc"] is None


def test_refusals(cohort: Path, tmp_path: Path) -> None:
    both = call(cohort, tmp_path / "folds", "--folds", 2, "--leave-one-centre-out")
    assert "--folds has no effect with --leave-one-centre-out" in str(both.exception)
    few = call(cohort, tmp_path / "folds", "--folds", 7)
    assert isinstance(few.exception, CohortError)
    reference = tmp_path / "one.csv"
    text = (cohort / "stage_labels.csv").read_text()
    for patient in (20, 40):
        for node in range(3):
            name = f"patient_{patient:03d}_node_{node}.tif"
            text = text.replace(f"{name},macro", f"{name},negative")
    reference.write_text(text)
    one = call(cohort, tmp_path / "folds", reference=str(reference))
    assert "has one label alone where CWZ is left out" in str(one.exception)
    assert not (tmp_path / "folds").exists() or not any((tmp_path / "folds").iterdir())
