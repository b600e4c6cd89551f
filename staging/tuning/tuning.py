"""Learn the settings of lesions on a folder of heatmaps, and say how well they do on patients not learnt from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from staging.bars import watched
from staging.cohorts.camelyon import StageTable, write_stage_table
from staging.cohorts.folds import HeldOut, deal_folds, groups_of
from staging.csv_rows import csv_text
from staging.errors import CohortError
from staging.lesions.labels import SizeRule, SlideLabel
from staging.lesions.seen import seen_json
from staging.runs.cluster import TileNews, each
from staging.scores.patients import score_kappa
from staging.scores.slides import score_labels
from staging.stages.pn import BY_NAME, PatientStage, SlideNodes
from staging.tuning.choosing import Chosen, Evidence, choose
from staging.tuning.curve_picture import curve_picture
from staging.tuning.grid import NAMES, SettingGrid, slide_ranks
from staging.tuning.losses import LOSSES, LossName, stage_ranks
from staging.tuning.slides import LabelledHeatmaps
from wsi.heatmap_store import read_heatmap
from wsi.outputs import FileKind, FolderKind, json_file, picture, table
from wsi.render import save_png
from wsi.store import atomic_text, json_text

RECORD, SETTINGS, LABELS, STAGES, CURVES, PICTURE = (
    "tune.json",
    "settings.toml",
    "labels.csv",
    "stages.csv",
    "curves.csv",
    "curves.png",
)
_HEAD = "# settings of sentinode tune"
FILES: dict[str, FileKind] = {
    RECORD: json_file("a record of sentinode tune", '"out_of_fold"'),
    SETTINGS: FileKind(
        name="settings of sentinode tune",
        suffixes=(".toml",),
        is_one=lambda file: file.read(len(_HEAD)) == _HEAD.encode(),
    ),
    LABELS: table("slide", "label", "fold", name="a table of labels by folds"),
    STAGES: table("patient", "stage", name="a table of stages"),
    CURVES: table("setting", "value", name="a table of curves"),
    PICTURE: picture(Path(PICTURE)),
}
OUTPUT = FolderKind(files=FILES)
"""The folder of a tuning; its record is written last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRecipe:
    """How settings are learnt.

    Attributes:
        loss: what is minimised, see LOSSES.
        folds: of patients; centres are left out one at a time.
        held_out: whether patients or centres are held out together.
        seed: of the folds.
    """

    loss: LossName = "kappa"
    folds: int = 5
    held_out: HeldOut = "patients"
    seed: int = 0


def tune_heatmaps(
    slides: LabelledHeatmaps, output: Path, recipe: TuningRecipe, *, nodes: SlideNodes = BY_NAME, workers: int = 1
) -> dict[str, Any]:
    """Choose threshold, peak, smallest size and merge gap, and judge such a choice on held-out patients.

    Args:
        slides: heatmaps of patients that the network did not see, with their labels.
        output: a folder; the files of FILES are written.
        recipe: how.
        nodes: which patient and node each slide is of.
        workers: number of processes; without influence on the result.

    Returns:
        The contents of tune.json: ``settings`` chosen on all slides, ``at_bound`` (those that are the first
        or last value tried), ``out_of_fold`` (kappa and labels, each slide by
        settings chosen without its fold), ``folds`` (settings, slides and patients of each), ``left_out``.

    Raises:
        CohortError: too few patients for the folds; for the loss kappa also: all patients have one stage.
        ArtefactError, ResolutionError: a heatmap cannot be used.
        StorageError: a file cannot be written.
    """
    groups = groups_of(slides.names, recipe.held_out, nodes=nodes)
    fold = deal_folds(groups, slides.truth, count=recipe.folds, held_out=recipe.held_out, seed=recipe.seed)
    evidence = gather_evidence(slides, workers=workers)
    _check(evidence, fold, recipe.loss)
    chosen = choose(evidence, fold, recipe.loss)
    labels = {name: list(SlideLabel)[rank] for name, rank in zip(slides.names, chosen.unseen.tolist(), strict=True)}
    record = _record(slides, evidence, chosen, recipe, labels)
    settings = evidence.grid.at(chosen.setting)
    atomic_text(output / SETTINGS, _toml(settings, record["out_of_fold"]))
    rows = ((name, label.value, int(part)) for (name, label), part in zip(labels.items(), fold, strict=True))
    atomic_text(output / LABELS, csv_text(("slide", "label", "fold"), rows))
    write_stage_table(output / STAGES, _stages(evidence, chosen), labels, nodes)
    atomic_text(output / CURVES, csv_text(("setting", "value", "loss"), _curve_rows(evidence, chosen)))
    save_png(output / PICTURE, curve_picture(evidence.grid, chosen, settings, loss=recipe.loss))
    atomic_text(output / RECORD, json_text(record))
    return record


def gather_evidence(slides: LabelledHeatmaps, *, workers: int = 1) -> Evidence:
    """Label every slide with every combination of settings.

    Raises:
        ArtefactError, ResolutionError: a heatmap cannot be used.
    """
    grid = SettingGrid.around({name: getattr(slides.settings, name).value for name in NAMES})
    tasks = [(path, grid, slides.settings.rule) for path in slides.heatmaps.values()]
    found = {}
    outcomes = watched(
        each(_ranks, tasks, workers=workers),
        count=len(tasks),
        verb="heatmaps measured",
        name=lambda one: one[0][0].stem,
    )
    for (path, _, _), outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        found[path] = outcome.reshape(-1)
    claimed = np.array([found[path] for path in slides.heatmaps.values()], dtype=np.int8)
    return Evidence(grid=grid, truth=slides.truth, claimed=claimed, patients=slides.patients)


def _ranks(task: tuple[Path, SettingGrid, SizeRule], _: TileNews) -> Any:  # noqa: ANN401  (an array, or its error)
    path, grid, rule = task
    return slide_ranks(read_heatmap(path), grid, rule)


def _check(evidence: Evidence, fold: Any, loss: LossName) -> None:  # noqa: ANN401  (an array)
    """Refuse a loss that no choice would change.

    Raises:
        CohortError: it is one.
    """
    if loss == "labels":
        return
    for number in range(int(fold.max()) + 1):
        stages = {one.stage for one in evidence.staged(fold != number)}
        if len(stages) < 2:
            few = "no patient can be staged" if not stages else "all patients have one stage"
            raise CohortError(
                None, f"without fold {number} {few}", mend="give more patients, or choose by --loss labels"
            )


def _stages(evidence: Evidence, chosen: Chosen) -> dict[str, PatientStage]:
    ranks = stage_ranks(chosen.unseen[:, np.newaxis], evidence.patients)[:, 0].tolist()
    return {one.name: list(PatientStage)[rank] for one, rank in zip(evidence.patients, ranks, strict=True)}


def _record(
    slides: LabelledHeatmaps,
    evidence: Evidence,
    chosen: Chosen,
    recipe: TuningRecipe,
    labels: Mapping[str, SlideLabel],
) -> dict[str, Any]:
    truth = {name: list(SlideLabel)[rank] for name, rank in zip(slides.names, slides.truth.tolist(), strict=True)}
    stages = {one.name: list(PatientStage)[one.stage] for one in slides.patients}
    kappa = None
    if stages:
        kappa = score_kappa(StageTable(stages=stages), StageTable(stages=_stages(evidence, chosen))).to_json()
    return {
        "settings": evidence.grid.at(chosen.setting),
        "at_bound": evidence.grid.at_bound(evidence.grid.at(chosen.setting)),
        "before": {name: asdict(getattr(slides.settings, name)) for name in NAMES},
        "loss": {"name": recipe.loss, "is": LOSSES[recipe.loss]},
        "held_out": recipe.held_out,
        "seed": recipe.seed,
        "slides": len(slides.names),
        "patients": len(slides.patients),
        "out_of_fold": {"stages": kappa, "labels": score_labels(truth, labels).to_json()},
        "folds": [
            {
                "settings": evidence.grid.at(setting),
                "slides": int((chosen.fold == number).sum()),
                "patients": [one.name for one in evidence.staged(chosen.fold == number)],
            }
            for number, setting in enumerate(chosen.of_folds)
        ],
        "left_out": dict(slides.left_out),
        **seen_json(slides.seen, slides.faults),
    }


def _curve_rows(evidence: Evidence, chosen: Chosen) -> list[Sequence[object]]:
    return [
        (name, f"{value:g}", f"{loss:.6f}")
        for name in NAMES
        for value, loss in zip(evidence.grid.values[name], chosen.curves[name].tolist(), strict=True)
    ]


def _toml(settings: Mapping[str, float], result: Mapping[str, Any]) -> str:
    """Write the settings as a file for --config of run and lesions."""
    stages, labels = result["stages"], result["labels"]
    kappa = "no patient could be staged"
    if stages is not None and stages["kappa"] is not None:
        kappa = f"kappa {stages['kappa']:.3f} of {stages['patients']} patients"
    lines = [
        f"{_HEAD}; on held-out patients such settings give:",
        f"# {kappa}, label accuracy {labels['accuracy']:.3f} of {labels['slides']} slides",
    ]
    for command in ("run", "lesions"):
        lines += ["", f"[{command}]"]
        lines += [f"{name.replace('_', '-')} = {value!r}" for name, value in settings.items()]
    return "\n".join([*lines, ""])
