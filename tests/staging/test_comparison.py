"""Ways to label slides, compared by the same folds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from feature_files import PixelSlide, write_slide
from heatmap_files import labelled_cohort
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from staging.cli import app
from staging.cohorts.camelyon import read_label_table
from staging.errors import CohortError
from staging.lesions.labels import SlideLabel
from staging.scores.several import holm
from wsi.errors import OutputExistsError


@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=12))
def test_p_values_are_adjusted_as_holm_says(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    known = [value for value in p_values if not np.isnan(value)]
    for value, ours in zip(p_values, adjusted, strict=True):
        if np.isnan(value):
            assert np.isnan(ours)
            continue
        # literally: the largest of (number of those not smaller) x p over all p up to this one
        expected = max(
            min(1.0, (len(known) - sum(one < other for one in known)) * other) for other in known if other <= value
        )
        assert ours == pytest.approx(expected)
        assert value <= ours <= 1


def test_the_example_of_a_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def called(folder: Path, *more: object) -> Result:
    command = ["compare", folder / "heatmaps", folder / "reference.csv", "-o", folder / "compared", "--folds", 3]
    return CliRunner().invoke(app, [str(one) for one in (*command, "--workers", 1, *more)])


@pytest.mark.slow
def test_all_methods_are_judged_by_the_same_folds(tmp_path: Path) -> None:
    labelled_cohort(tmp_path, patients=9)
    truth = read_label_table(tmp_path / "reference.csv")
    for number, (name, label) in enumerate(truth.items()):
        if number < len(truth) - 5:  # the last patient has no features
            write_slide(tmp_path / "features", name, PixelSlide(number, is_positive=label is not SlideLabel.NEGATIVE))
    done = called(tmp_path, "--features", tmp_path / "features", "--epochs", 4)
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert list(record["methods"]) == ["size rule", "tuned size rule", "learned labels (forest)", "MIL"]
    assert (record["slides"], record["patients"], record["folds"]) == (40, 8, 3)
    assert set(record["left_out"].values()) == {"it has no features"}
    with (tmp_path / "compared" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["fold"] for row in rows if row["slide"].startswith("patient_003")}) == 1
    reference = [SlideLabel.parse(row["reference"]).rank for row in rows]
    assert reference == [truth[row["slide"]].rank for row in rows]
    claimed = {name: [SlideLabel.parse(row[name]).rank for row in rows] for name in record["methods"]}
    with (tmp_path / "compared" / "compare.csv").open() as file:
        table = {row["method"]: row for row in csv.DictReader(file)}
    for name, scores in record["methods"].items():
        right = np.mean(np.array(claimed[name]) == reference)
        assert scores["labels"]["accuracy"] == pytest.approx(right)
        assert float(table[name]["accuracy"]) == pytest.approx(right, abs=1e-4)
    # every negative slide has a false lesion of 0.96, which the default peak lets through, and tuning does not
    assert record["methods"]["size rule"]["labels"]["recall"]["negative"] == 0
    assert record["methods"]["tuned size rule"]["labels"]["accuracy"] == 1
    assert len(record["differences"]) == 6 * 3
    for one in record["differences"]:
        if one["score"] == "accuracy of labels":
            found = [float(np.mean(np.array(claimed[one[side]]) == reference)) for side in ("of", "minus")]
            assert one["values"] == pytest.approx(found)
        if one["score"] == "kappa of stages":
            kappas = [record["methods"][one[side]]["stages"]["kappa"] for side in ("of", "minus")]
            assert one["kappas"] == pytest.approx(kappas)
    known = [one["p_value"] for one in record["differences"]]
    assert [one["p_adjusted"] for one in record["differences"]] == pytest.approx(holm(known))
    with (tmp_path / "compared" / "differences.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(one["score"], one["of"], one["minus"]) for one in rows] == [
        (one["score"], one["of"], one["minus"]) for one in record["differences"]
    ]
    assert float(rows[1]["p_adjusted"]) == pytest.approx(record["differences"][1]["p_adjusted"], rel=1e-3)
    assert [float(rows[1][end]) for end in ("low", "high")] == pytest.approx(
        record["differences"][1]["interval"], rel=1e-3
    )
    assert "adjusted for their number (Holm)" in done.stderr
    assert isinstance(called(tmp_path).exception, OutputExistsError)


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    labelled_cohort(tmp_path, patients=2)
    assert isinstance(called(tmp_path).exception, CohortError)
    assert "--epochs has no effect without --features" in str(called(tmp_path, "--epochs", 3).exception)
    for command in (("--hold-out", "centres"), ("--hold-out", "centres", "--epochs", 3)):
        assert "has no effect" in str(called(tmp_path, *command).exception)
    assert not (tmp_path / "compared").exists()
