"""Heatmaps of slides of known label, and of patients that the network did not see."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from staging.cohorts.camelyon import read_label_table
from staging.cohorts.errata import EXCLUDED
from staging.cohorts.names import slide_key
from staging.cohorts.training_patients import training_patients
from staging.errors import CohortError
from staging.learned_labels.labelling import find_heatmaps
from staging.lesions.seen import Seen, SeenRule, look_through
from staging.lesions.settings import LesionSettings, refuse_different, settings_of
from staging.stages.pn import BY_NAME, EXPECTED_NODES, SlideNodes, stage_patients
from staging.tuning.losses import PatientSlides


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledHeatmaps:
    """Heatmaps with the labels of their slides.

    Attributes:
        heatmaps: by slide name, in the order of the names.
        truth: int64 (slides,), ranks of the labels.
        patients: those of whom every slide is there.
        settings: with which lesions were found so far.
        seen: how much of each slide was looked at.
        left_out: slides that have a heatmap or a label but are not used, and why.
        faults: slides among these of which too much tissue went unseen, and how much was.
    """

    heatmaps: Mapping[str, Path]
    truth: NDArray[np.int64]
    patients: tuple[PatientSlides, ...]
    settings: LesionSettings
    seen: Mapping[str, Seen]
    left_out: Mapping[str, str]
    faults: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the slides."""
        return tuple(self.heatmaps)


def gather_heatmaps(
    run: Path,
    reference: Path,
    *,
    model: Path | None = None,
    nodes: SlideNodes = BY_NAME,
    expected_nodes: int = EXPECTED_NODES,
    seen_rule: SeenRule | None = None,
    with_features: Collection[str] | None = None,
) -> LabelledHeatmaps:
    """Match heatmaps with labels; leave out what says nothing about unseen patients.

    Left out are slides of patients that the model learnt from or was chosen by, slides without a heatmap or a label,
    those known to be wrong, and those of which too much tissue went unseen.

    Args:
        run: the output of a run, or a folder of heatmaps.
        reference: a table of slide labels.
        model: the checkpoint that made the heatmaps; without it no patient is known to have been seen.
        nodes: which patient and node each slide is of.
        expected_nodes: slides per patient, where names give the node.
        seen_rule: None for SeenRule().
        with_features: slides that have features, by slide_key, where slides without are left out, too.

    Raises:
        ArtefactError: there are no heatmaps, or one cannot be read.
        TableError: the reference cannot be read.
        CohortError: no slide is left.
        ConfigurationError: the heatmaps are of runs with different settings, or were not made by the model.
    """
    labels = {slide_key(name): label for name, label in read_label_table(reference).items()}
    seen, faults = look_through(find_heatmaps(run), seen_rule or SeenRule())
    learnt = _training_patients(model)
    left_out = dict(faults)
    used: dict[str, Path] = {}
    for path in sorted(seen, key=lambda one: one.stem):
        reason = _obstacle(path.stem, labels.keys(), learnt, nodes)
        if reason is None and with_features is not None and slide_key(path.stem) not in with_features:
            reason = "it has no features"
        if reason is None:
            used[path.stem] = path
        else:
            left_out[path.stem] = reason
    there = {slide_key(path.stem) for path in seen} | {slide_key(name) for name in faults}
    left_out |= dict.fromkeys(sorted(labels.keys() - there), "it has no heatmap")
    if not used:
        reasons = "; ".join(sorted(set(left_out.values())))
        raise CohortError(run, f"has no heatmap to learn from: {reasons:.300}", mend="run slides of other patients")
    settings = [settings_of(path, options={}, model=model) for path in used.values()]
    refuse_different(settings)
    of_slides = {name: labels[slide_key(name)] for name in used}
    staged = stage_patients(of_slides, expected_nodes=expected_nodes, nodes=nodes).stages
    order = {name: at for at, name in enumerate(used)}
    of_patients: dict[str, dict[int, list[int]]] = {}
    for name in used:
        if (patient := nodes.patient(name)) in staged:
            of_patients.setdefault(patient, {}).setdefault(nodes.of(name)[1], []).append(order[name])
    return LabelledHeatmaps(
        heatmaps=used,
        truth=np.array([label.rank for label in of_slides.values()], dtype=np.int64),
        patients=tuple(
            PatientSlides(name=patient, nodes=tuple(map(tuple, slides.values())), stage=staged[patient].rank)
            for patient, slides in of_patients.items()
        ),
        settings=settings[0],
        seen={path.stem: one for path, one in seen.items() if path.stem in used},
        left_out=left_out,
        faults=faults,
    )


def _training_patients(model: Path | None) -> frozenset[str]:
    if model is None:
        return frozenset()
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

    return training_patients(load_checkpoint(model).provenance)


def _obstacle(name: str, labelled: Collection[str], learnt: frozenset[str], nodes: SlideNodes) -> str | None:
    """Return why nothing can be learnt from a heatmap about unseen patients, or None."""
    key = slide_key(name)
    if key not in labelled:
        return "it has no label"
    if key in EXCLUDED:
        return EXCLUDED[key]
    if (nodes.patient(name) or name) in learnt:
        return "the model was trained on its patient, or chosen by it"
    return None
