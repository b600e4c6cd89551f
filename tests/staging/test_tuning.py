"""The settings of lesions, learnt from labelled slides and judged on patients not learnt from."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heatmap_files import heatmap_of, labelled_cohort
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner, Result

from staging.cli import app
from staging.cohorts.folds import deal_folds
from staging.errors import CohortError
from staging.lesions.finding import find_lesions
from staging.lesions.labels import SizeRule, SlideLabel, slide_label
from staging.scores.kappa import quadratic_kappa
from staging.stages.pn import PatientStage, stage_patient
from staging.tuning.choosing import Evidence, choose
from staging.tuning.grid import NAMES, SettingGrid, slide_ranks
from staging.tuning.losses import PatientSlides, kappas, label_costs, stage_ranks
from wsi.cnn.checkpoint import Checkpoint, save_checkpoint
from wsi.coverage import Coverage
from wsi.errors import OutputExistsError
from wsi.heatmap_store import write_heatmap

START = {"threshold": 0.5, "merge_gap_um": 75.0, "peak": 0.9, "smallest_um": 60.0}
SMALL = SettingGrid(
    values={
        "threshold": (0.4, 0.5, 0.8),
        "merge_gap_um": (0.0, 75.0),
        "peak": (0.5, 0.9),
        "smallest_um": (0.0, 60.0, 200.0),
    },
    start=START,
)
LABELS = list(SlideLabel)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 4.0))
def test_a_slide_gets_the_label_that_its_lesions_have_with_each_setting(seed: int, smooth: float) -> None:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(60, 90)), smooth)
    heatmap = heatmap_of(1 / (1 + np.exp(-3 * noise / noise.std() + 2)))
    found = slide_ranks(heatmap, SMALL, SizeRule()).reshape(-1)
    for index, rank in enumerate(found.tolist()):
        at = SMALL.at(index)
        lesions, _ = find_lesions(heatmap, **at)
        assert LABELS[rank] is slide_label(lesions)


ranks = arrays(np.int8, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=st.integers(0, 3))


@given(ranks, st.integers(0, 2**32 - 1))
def test_losses_are_those_of_one_setting_after_another(claimed: NDArray[np.int8], seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 4, len(claimed))
    whole = label_costs(truth, claimed)
    for setting, cost in enumerate(whole):
        squared = (claimed[:, setting].astype(int) - truth) ** 2
        assert cost == pytest.approx(np.mean([squared[truth == rank].mean() for rank in set(truth.tolist())]))
    node = random.integers(0, 3, len(claimed))
    nodes = tuple(tuple(np.flatnonzero(node == one).tolist()) for one in np.unique(node))
    (stages,) = stage_ranks(claimed, [PatientSlides(name="p", nodes=nodes, stage=0)])
    for setting, stage in enumerate(stages.tolist()):
        worst = [max(LABELS[claimed[at, setting]] for at in slides) for slides in nodes]
        assert list(PatientStage)[stage] is stage_patient(worst)
    for setting, kappa in enumerate(kappas(truth, claimed.astype(np.int64))):
        expected = quadratic_kappa(truth, claimed[:, setting], classes=4)
        assert kappa == pytest.approx(1.0 if np.isnan(expected) else expected)


def evidence_of(claimed: NDArray[np.int8], truth: NDArray[np.int64]) -> Evidence:
    patients = tuple(
        PatientSlides(
            name=f"p{at}",
            nodes=tuple((slide,) for slide in range(at * 5, at * 5 + 5)),
            stage=stage_patient(LABELS[rank] for rank in truth[at * 5 : at * 5 + 5]).rank,
        )
        for at in range(len(truth) // 5)
    )
    return Evidence(grid=SMALL, truth=truth, claimed=claimed, patients=patients)


@pytest.mark.parametrize("loss", ["kappa", "labels"])
def test_the_settings_that_give_the_truth_are_found_by_every_fold(loss: Any) -> None:
    random = np.random.default_rng(3)
    truth = random.integers(0, 4, 100)
    claimed = np.zeros((100, *SMALL.shape), dtype=np.int8)
    claimed[:, :, :, 1] = truth[:, np.newaxis, np.newaxis, np.newaxis]
    evidence = evidence_of(claimed.reshape(100, -1), truth)
    chosen = choose(evidence, np.arange(100) // 5 % 4, loss)
    assert SMALL.at(chosen.setting) == START  # the nearest of those that are right
    assert set(chosen.of_folds) == {chosen.setting}
    assert chosen.unseen.tolist() == truth.tolist()
    assert [curve.min() for curve in chosen.curves.values()] == [0.0] * 4
    peak = chosen.curves["peak"]
    assert peak[0] > peak[1]


def test_a_setting_at_the_end_of_what_is_tried_is_named() -> None:
    assert SMALL.at_bound(START) == ["merge_gap_um", "peak"]
    inside = {"threshold": 0.5, "merge_gap_um": 0.0, "peak": 0.5, "smallest_um": 0.0}
    assert SMALL.at_bound(inside) == ["peak"]
    assert SMALL.at_bound({**inside, "threshold": 0.8, "smallest_um": 200.0}) == ["threshold", "peak", "smallest_um"]


def test_a_held_out_slide_is_not_looked_at() -> None:
    random = np.random.default_rng(4)
    truth = random.integers(0, 4, 60)
    claimed = np.clip(truth[:, np.newaxis] + random.integers(-1, 2, (60, int(np.prod(SMALL.shape)))), 0, 3)
    evidence = evidence_of(claimed.astype(np.int8), truth)
    fold = np.arange(60) // 5 % 3
    before = choose(evidence, fold, "labels")
    shuffled = truth.copy()
    shuffled[fold == 1] = 3 - shuffled[fold == 1]
    after = choose(replace(evidence, truth=shuffled), fold, "labels")
    assert after.unseen[fold == 1].tolist() == before.unseen[fold == 1].tolist()
    assert after.of_folds[1] == before.of_folds[1]
    assert after.of_folds != before.of_folds


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(2, 5),
    st.integers(0, 99),
)
def test_folds_never_divide_a_group_and_are_of_equal_size(slides: list[tuple[int, int]], count: int, seed: int) -> None:
    groups = [f"g{group}" for group, _ in slides]
    if len(set(groups)) < count:
        with pytest.raises(CohortError, match="too few"):
            deal_folds(groups, [rank for _, rank in slides], count=count, held_out="patients", seed=seed)
        return
    fold = deal_folds(groups, [rank for _, rank in slides], count=count, held_out="patients", seed=seed)
    of_group = {group: set(fold[np.array(groups) == group].tolist()) for group in groups}
    assert all(len(folds) == 1 for folds in of_group.values())
    sizes = np.bincount([next(iter(folds)) for folds in of_group.values()], minlength=count)
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1


def tune(folder: Path, *more: object) -> Result:
    command = ["tune", folder / "heatmaps", folder / "reference.csv", "-o", folder / "tuned", "--folds", 3]
    return CliRunner().invoke(app, [str(one) for one in (*command, "--workers", 1, *more)])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kappa", "labels"])
def test_a_peak_above_the_false_lesions_is_learnt(tmp_path: Path, loss: str) -> None:
    labelled_cohort(tmp_path)
    done = tune(tmp_path, "--loss", loss)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["before"]["peak"] == {"value": 0.9, "source": "default"}
    assert 0.96 < found["settings"]["peak"] <= 0.999
    assert found["out_of_fold"]["stages"]["kappa"] == 1.0
    assert found["out_of_fold"]["labels"]["accuracy"] == 1.0
    assert (found["slides"], found["patients"], len(found["folds"])) == (30, 6, 3)
    assert "without --model it is not known" in done.stderr
    # what is learnt can be given to the commands that find lesions
    written = tomllib.loads((tmp_path / "tuned" / "settings.toml").read_text())
    assert written["run"] == written["lesions"]
    assert {name.replace("-", "_"): value for name, value in written["run"].items()} == found["settings"]
    config = ("--config", tmp_path / "tuned" / "settings.toml")
    command = ["lesions", tmp_path / "heatmaps", "-o", tmp_path / "lesions", *config]
    applied = json.loads(CliRunner().invoke(app, [str(one) for one in command], catch_exceptions=False).stdout)
    assert {name: applied["settings"][name]["value"] for name in NAMES} == found["settings"]
    assert sum(map(bool, applied["lesions"].values())) == 4
    with (tmp_path / "tuned" / "labels.csv").open() as file:
        labels = list(csv.DictReader(file))
    assert len({row["fold"] for row in labels if row["slide"].startswith("patient_000")}) == 1
    curves = (tmp_path / "tuned" / "curves.csv").read_text().splitlines()
    assert curves[0] == "setting,value,loss"
    assert "peak,0.998,0.000000" in curves
    assert (tmp_path / "tuned" / "curves.png").is_file()
    stages = CliRunner().invoke(
        app, ["score", "kappa", str(tmp_path / "tuned" / "stages.csv"), str(tmp_path / "tuned" / "stages.csv")]
    )
    assert json.loads(stages.stdout)["kappa"] == 1.0
    again = tune(tmp_path)
    assert isinstance(again.exception, OutputExistsError)
    assert tune(tmp_path, "--overwrite").exit_code == 0


@pytest.mark.slow
def test_what_says_nothing_about_unseen_patients_is_left_out(
    tmp_path: Path, make_checkpoint: Callable[..., Checkpoint]
) -> None:
    labelled_cohort(tmp_path, patients=9)
    model = tmp_path / "m.safetensors"
    save_checkpoint(model, replace(make_checkpoint(mpp=8.0), provenance={"patients": ["patient_001"]}))
    reference = (tmp_path / "reference.csv").read_text().splitlines()
    reference = [row for row in reference if not row.startswith("patient_002_node_3")]
    (tmp_path / "reference.csv").write_text("\n".join([*reference, "patient_050_node_0.tif,itc"]))
    whole = heatmap_of(np.zeros((100, 120)))
    partly = Coverage(tissue_mm2=9.0, looked_mm2=3.0, missing_tiles=5)
    write_heatmap(tmp_path / "heatmaps" / "patient_060_node_0.zarr", whole, {}, coverage=partly)
    done = tune(tmp_path, "-m", model)
    assert done.exit_code == 3, done.output
    found = json.loads(done.stdout)
    assert found["left_out"]["patient_001_node_0"] == "the model was trained on its patient, or chosen by it"
    assert found["left_out"]["patient_002_node_3"] == "it has no label"
    assert found["left_out"]["patient_050_node_0"] == "it has no heatmap"
    assert list(found["quarantined"]) == ["patient_060_node_0"]
    assert len(found["left_out"]) == 5 + 1 + 1 + 1
    assert found["slides"] == 45 - 5 - 1
    assert found["patients"] == 9 - 2  # patient_002 is not complete, but its slides count
    assert "left out: 5 slides, because the model was trained on" in done.stderr
    assert "without --model" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patients", "more", "reason"),
    [
        (2, (), "too few patients for 3 folds: 2"),
        (6, ("--nodes", 6), "no patient can be staged"),
        (6, ("--hold-out", "centres", "--folds", 5), "too few centres for 2 folds: 1"),
    ],
)
def test_too_little_to_learn_from_is_said(tmp_path: Path, patients: int, more: tuple[object, ...], reason: str) -> None:
    labelled_cohort(tmp_path, patients=patients)
    done = tune(tmp_path, *more)
    assert isinstance(done.exception, CohortError)
    assert reason in str(done.exception)
    assert not (tmp_path / "tuned").exists()
