"""What a network says of held-out slides, slide by slide and centre by centre."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from staging.training.held_out import FEWEST_SLIDES, HeldOutReport
from wsi.cnn.checkpoint import Checkpoint
from wsi.cnn.training import Training

SLIDES = ["patient_000_node_0", "patient_000_node_1", "patient_025_node_0", "other"]


@pytest.fixture
def result(make_checkpoint: Callable[..., Checkpoint]) -> Training:
    """Four slides of ten patches with four cells each; the patches before them were learnt from."""
    random = np.random.default_rng(0)
    patches = np.repeat(np.arange(100, 140), 4)
    truth = random.random(160) < 0.4
    checkpoint = replace(make_checkpoint(mpp=8.0), threshold=0.7)
    checkpoint.network.temperature = 2.0
    return Training(
        checkpoint=checkpoint,
        history=(),
        best=0,
        judges=("patient_000", "patient_025", "other"),
        margins=random.normal(size=160) + 2 * truth,
        truth=truth,
        patches=patches,
        class_weights=np.ones(2),
    )


def names() -> Any:
    return np.array(["learnt"] * 100 + [SLIDES[at // 10] for at in range(40)])


def test_each_slide_and_centre_is_judged_by_its_own_cells(result: Training) -> None:
    report = HeldOutReport.of(result, names())
    probability = 1 / (1 + np.exp(-result.margins / 2.0))
    of_cell = names()[result.patches]
    parts = {one.name: [one.name] for one in report.slides} | {"CWZ": SLIDES[:2], "RST": SLIDES[2:3]}
    assert [one.name for one in report.slides] == sorted(SLIDES)
    assert [one.name for one in report.centres] == ["CWZ", "RST"]
    for one in (*report.slides, *report.centres):
        chosen = np.isin(of_cell, parts[one.name])
        truth = result.truth[chosen]
        assert one.auc == pytest.approx(roc_auc_score(truth, result.margins[chosen]))
        assert one.recall == pytest.approx((probability[chosen] >= 0.7)[truth].mean())
        assert one.specificity == pytest.approx((probability[chosen] < 0.7)[~truth].mean())
        assert (one.slides, one.patches) == (len(parts[one.name]), 10 * len(parts[one.name]))
        assert (one.cells, one.tumour_cells) == (int(chosen.sum()), int(truth.sum()))
    rows = list(csv.DictReader(io.StringIO(report.table())))
    assert [(row["slide"], row["centre"]) for row in rows] == [
        ("other", ""),
        *zip(SLIDES[:3], ["CWZ", "CWZ", "RST"], strict=True),
    ]
    first, second = report.lines()
    assert first.startswith("AUC within each of 4 held-out slides: ")
    assert second.startswith("AUC of each centre: CWZ ")
    assert list(report.doubts()) == ["the held-out patients have 4 slides: that says little about others"]
    assert FEWEST_SLIDES > 4


@pytest.mark.parametrize(("only", "what"), [(True, "tumour"), (False, "normal tissue")])
def test_a_class_on_one_slide_alone_is_said(result: Training, what: str, *, only: bool) -> None:
    of_cell = names()[result.patches]
    truth = np.where(of_cell == SLIDES[1], result.truth, not only)
    report = HeldOutReport.of(replace(result, truth=truth), names())
    doubts = list(report.doubts())
    assert doubts[1:] == [
        f"all held-out {what} is of one slide, {SLIDES[1]}: the AUC may tell slides apart, not tissue"
    ]
    alone = next(one for one in report.slides if one.name == SLIDES[0])
    assert alone.auc is None
    assert (alone.recall is None, alone.specificity is None) == (only, not only)


def test_without_held_out_patients_nothing_is_said(result: Training) -> None:
    nothing = replace(
        result, margins=np.empty(0), truth=np.empty(0, dtype=np.bool_), patches=np.empty(0, dtype=np.int64), judges=()
    )
    report = HeldOutReport.of(nothing, names())
    assert (report.slides, list(report.lines()), list(report.doubts())) == ((), [], [])
