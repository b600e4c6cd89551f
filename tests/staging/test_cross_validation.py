"""Train, run and score on what training did not see: folds, and the whole protocol on a small synthetic cohort."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from staging import cross_validation, demo
from staging.cli import app
from staging.cohorts.camelyon import SlideFile, StageTable, find_slides, read_stage_table
from staging.cross_validation import Fold, cross_validate, folds_by_centre, folds_by_patient
from staging.errors import CohortError, ConfigurationError, MissingPatientError
from staging.lesions.labels import SlideLabel
from staging.phantom import generate_cohort
from staging.stages.pn import PatientStage
from staging.training import rounds
from staging.training.labelled_cohort import LabelledCohort
from staging.training.recipe import CohortRecipe
from staging.training.rounds import run_training
from staging.training.training_progress import TrainingProgress
from wsi.cnn.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow  # its fixtures take seconds

MPP = 8.0
RECIPE = CohortRecipe(seed=1, mpp=MPP, size_px=112, tumour=6, normal=4, hard=2, first_epochs=2, epochs=2, device="cpu")
SILENCE = TrainingProgress(is_silent=True)


class Told(TrainingProgress):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__(is_silent=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def slide(patient: int, node: int = 0) -> SlideFile:
    name = f"patient_{patient:03}_node_{node}"
    return SlideFile(path=Path(f"{name}.tif"), name=name, patient=f"patient_{patient:03}", node=node)


def test_a_fold_per_centre() -> None:
    slides = [slide(patient, node) for patient in (0, 19, 20, 45, 99, 120) for node in range(2)]
    folds = folds_by_centre(slides)
    assert [fold.name for fold in folds] == ["CWZ", "RST", "UMCU", "LPON"]
    assert [len(fold.held_out) for fold in folds] == [4, 4, 2, 2]
    with pytest.raises(CohortError, match="only centre"):
        folds_by_centre(slides[:4])
    with pytest.raises(CohortError, match="does not give its patient"):
        folds_by_centre([SlideFile(path=Path("tumor_001.tif"), name="tumor_001")])


@given(patients=st.sets(st.integers(0, 199), min_size=2, max_size=30), folds=st.integers(2, 6))
def test_folds_of_patients_part_the_cohort(patients: set[int], folds: int) -> None:
    slides = [slide(patient, node) for patient in patients for node in range(3)]
    if len(patients) < folds:
        with pytest.raises(CohortError, match="too few for"):
            folds_by_patient(slides, folds)
        return
    parts = folds_by_patient(slides, folds)
    held_out = [one.name for part in parts for one in part.held_out]
    assert sorted(held_out) == sorted(one.name for one in slides)
    owners = [{one.patient for one in part.held_out} for part in parts]
    assert sum(map(len, owners)) == len(patients)
    assert max(map(len, owners)) - min(map(len, owners)) <= 1


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    generate_cohort(folder, patients=4, centres=(0, 2), seed=4, mpp=MPP, workers=1)
    return folder


def labelled(folder: Path) -> LabelledCohort:
    return LabelledCohort(
        slides=find_slides([folder / "images"]),
        annotations=folder / "annotations",
        reference=read_stage_table(folder / "stage_labels.csv"),
    )


def test_the_whole_protocol_and_its_second_call(cohort: Path, tmp_path: Path) -> None:
    whole, told = labelled(cohort), Told()
    folds = folds_by_centre(whole.slides)
    record = cross_validate(whole, folds, tmp_path / "out", recipe=RECIPE, workers=1, news=told)
    assert record["patients"] == 4
    assert list(record["folds"]) == ["CWZ", "UMCU"]
    assert record["slides"] == 20
    assert record["slides_right"] == sum(part["slides_right"] for part in record["folds"].values())
    assert json.loads((tmp_path / "out" / "score.json").read_text()) == record
    assert set(read_stage_table(tmp_path / "out" / "stages.csv").stages) == {one.patient for one in whole.slides}
    models = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    assert len(models) == 2
    again = cross_validate(whole, folds, tmp_path / "out", recipe=RECIPE, workers=1, news=told)
    assert again == record
    assert {path: path.stat().st_mtime_ns for path in models} == models
    assert told.said.count("the network exists already") == 2


def test_demonstration_cross_validation_and_command_train_on_one_road(cohort: Path, tmp_path: Path) -> None:
    assert {vars(module)["run_training"] for module in (demo, cross_validation, rounds)} == {run_training}
    whole, told = labelled(cohort), Told()
    drawn = RECIPE.plan(whole, tmp_path / "drawn.safetensors", workers=1)
    made = run_training(drawn, news=told)
    *said, last = [one for one in told.said if not one.startswith("epoch")]
    assert said == [
        "drawing labelled patches",
        "round 1 of 2",
        "128 patches of 4 patients, held in memory",
        "round 2 of 2",
        f"{made['patches']} patches of 4 patients, held in memory",
    ]
    assert last.startswith(f"a lesion must reach {made['peak']:.4f}: ")
    assert f"of {len(whole.negatives().slides)} negative slides" in last
    assert f"of {sum(one.label is not SlideLabel.NEGATIVE for one in whole.weighted())} positive ones" in last
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("drawn.calibration.png", "drawn.csv", "drawn.learning.png", "drawn.patches.parquet"),
        *("drawn.round1.calibration.png", "drawn.round1.csv", "drawn.round1.learning.png"),
        *("drawn.round1.parquet", "drawn.round1.safetensors", "drawn.safetensors"),
    ]
    patches = (tmp_path / "drawn.patches.parquet",)
    given = replace(drawn, patches=patches, output=tmp_path / "given.safetensors", made_from=None)
    assert run_training(given, news=told) | {"model": made["model"], "made_from": made["made_from"]} == made
    first, second = (load_checkpoint(plan.output) for plan in (drawn, given))
    for name, weights in first.network.weights().items():
        np.testing.assert_array_equal(weights, second.network.weights()[name])
    assert first.provenance == {**second.provenance, "made_from": drawn.made_from}


def test_nothing_is_trained_where_the_cohort_is_wrong(cohort: Path, tmp_path: Path) -> None:
    whole = labelled(cohort)
    both = Fold(name="all", held_out=tuple(whole.slides))
    with pytest.raises(CohortError, match="in all and in again"):
        cross_validate(
            whole,
            [both, Fold(name="again", held_out=both.held_out[:1])],
            tmp_path,
            recipe=RECIPE,
            workers=1,
            news=SILENCE,
        )
    with pytest.raises(CohortError, match="nothing to train on"):
        cross_validate(whole, [both], tmp_path, recipe=RECIPE, workers=1, news=SILENCE)
    negative = labelled(cohort)
    empty = tmp_path / "none"
    empty.mkdir()
    bare = LabelledCohort(slides=negative.slides, annotations=empty, reference=negative.reference)
    with pytest.raises(CohortError, match="annotations for none of the"):
        cross_validate(bare, folds_by_centre(whole.slides), tmp_path, recipe=RECIPE, workers=1, news=SILENCE)
    stranger = Fold(name="stranger", held_out=(slide(77),))
    with pytest.raises(MissingPatientError, match="patient_077"):
        cross_validate(whole, [stranger], tmp_path, recipe=RECIPE, workers=1, news=SILENCE)


def test_what_the_last_fold_lacks_is_said_before_the_first_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staging.cross_validation.run_training", pytest.fail)
    slides = [slide(0), slide(40), slide(40, 1)]
    labels = {slides[0].name: SlideLabel.MACRO, slides[1].name: SlideLabel.MACRO, slides[2].name: SlideLabel.NEGATIVE}
    for one in slides[:2]:
        (tmp_path / f"{one.name}.xml").touch()
    stages = dict.fromkeys(("patient_000", "patient_040"), PatientStage.PN1)
    table = StageTable(stages=stages, labels=labels)
    whole = LabelledCohort(slides=slides, annotations=tmp_path, reference=table)
    with pytest.raises(CohortError, match="has no slide labelled negative"):  # without UMCU, which is held out second
        cross_validate(whole, folds_by_centre(slides), tmp_path / "out", recipe=RECIPE, workers=1, news=SILENCE)


@pytest.mark.parametrize(
    ("name", "reason"), [("cross_validation.json", "settings of something else"), ("mine.csv", "contains mine.csv")]
)
def test_an_output_of_others_is_refused_untouched(cohort: Path, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).write_text("{}")
    whole = labelled(cohort)
    with pytest.raises(ConfigurationError, match=reason):
        cross_validate(whole, folds_by_centre(whole.slides), tmp_path, recipe=RECIPE, workers=1, news=SILENCE)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "{}")]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--folds", "2", "--leave-one-centre-out"], "--folds has no effect with --leave-one-centre-out"),
        (["-a", "nowhere"], "no such directory"),
        (["--folds", "9"], "too few for 9 folds"),
    ],
)
def test_wrong_usage_is_told(cohort: Path, tmp_path: Path, options: list[str], reason: str) -> None:
    arguments = [
        *("cross-validate", str(cohort / "images"), "-a", str(cohort / "annotations")),
        *("-r", str(cohort / "stage_labels.csv"), "-o", str(tmp_path / "out"), *options),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code != 0
    assert reason in str(done.exception)
