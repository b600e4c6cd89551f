"""The plan of a cohort: stages of patients, labels and lesions of slides. Pure: nothing is drawn or written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from staging.lesions.labels import SizeRule, SlideLabel
from staging.phantom.stain import CENTRES
from staging.stages.pn import PatientStage

Difficulty = Literal["easy", "real"]
"""By what tumour is told: in ``real`` by its nuclei alone, as on real slides; in ``easy`` also by darker stain."""

NODES = 5
_PER_BLOCK = 20
_MIN_SIZE_UM = (4500.0, 3500.0)

# (ITC, micro, macro) nodes of five, and how many of the 100 training patients of CAMELYON17 have them
# (stage_labels.csv of the organisers; its totals are 323 negative, 35 ITC, 57 micro and 85 macro slides).
_COMPOSITIONS: dict[PatientStage, dict[tuple[int, int, int], int]] = {
    PatientStage.PN0: {(0, 0, 0): 25},
    PatientStage.PN0_I_PLUS: {(1, 0, 0): 5, (2, 0, 0): 5, (3, 0, 0): 1},
    PatientStage.PN1MI: {(0, 1, 0): 9, (0, 2, 0): 5, (0, 3, 0): 1, (1, 1, 0): 5, (1, 2, 0): 1},
    PatientStage.PN1: {
        (0, 0, 1): 9,
        (0, 0, 2): 4,
        (0, 0, 3): 2,
        (0, 1, 1): 3,
        (0, 1, 2): 1,
        (0, 2, 1): 2,
        (1, 0, 1): 1,
        (1, 0, 2): 2,
        (1, 1, 2): 3,
        (1, 2, 1): 2,
        (2, 1, 2): 1,
    },
    PatientStage.PN2: {(0, 0, 4): 7, (0, 1, 3): 1, (0, 2, 2): 3, (0, 3, 1): 1, (1, 2, 2): 1},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionPlan:
    """One lesion before it has a position.

    Attributes:
        diameter_um: its longest diameter, all deposits together.
        deposits: tumour deposits closer to each other than the merge distance.
        island: a lymphoid island is cut out of it.
        loop: its outline crosses itself once.
    """

    diameter_um: float
    deposits: int
    island: bool
    loop: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SlidePlan:
    """One slide before it is drawn, with everything that determines its pixels.

    Attributes:
        name: file name without suffix.
        patient, node: numbers in the name.
        centre: index into stain.CENTRES.
        seed: of the cohort; together with patient and node the seed of the slide.
        difficulty: by what its tumour is told.
        label: the label by the largest lesion.
        mpp: um per px of the finest level.
        width_um, height_um: of the scanned glass.
        pieces: 1 or 2 pieces of tissue.
        fatty: whether the node's middle is replaced by fat.
        pen, fold: whether the glass is marked, the tissue folded.
        lesions: largest first.
    """

    name: str
    patient: int
    node: int
    centre: int
    seed: int
    difficulty: Difficulty
    label: SlideLabel
    mpp: float
    width_um: float
    height_um: float
    pieces: int
    fatty: bool
    pen: bool
    fold: bool
    lesions: tuple[LesionPlan, ...]

    def random(self, purpose: int) -> np.random.Generator:
        """Return a separate random stream for each purpose, independent of where and when the slide is drawn."""
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.patient, self.node, purpose]))


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientPlan:
    """One patient: stage and five slides."""

    name: str
    centre: int
    stage: PatientStage
    slides: tuple[SlidePlan, ...]


def plan_cohort(
    *,
    patients: int,
    centres: Sequence[int],
    seed: int,
    mpp: float,
    size_um: tuple[float, float] | None = None,
    first_patient: int = 0,
    difficulty: Difficulty = "real",
) -> tuple[PatientPlan, ...]:
    """Plan a cohort in the proportions of CAMELYON17's training set.

    Args:
        patients: number of patients.
        centres: 0 to 4; patients are assigned to them in turn and numbered as in CAMELYON17 (20 per centre, then from
            100 on).
        seed: of everything.
        mpp: um per px of the coarsest scanner; those of the centres are 0.904 to 1 times this.
        size_um: width and height of every slide; random for each by default.
        first_patient: number of patients to skip first.
        difficulty: by what tumour is told.

    Returns:
        The patients in order of their numbers.

    Raises:
        ValueError: an argument is out of range.
    """
    centres = tuple(centres)
    if patients < 1 or first_patient < 0:
        raise ValueError(
            f"a cohort needs at least 1 patient and a first of at least 0, got {patients}, {first_patient}"
        )
    if not centres or len(set(centres)) != len(centres) or not set(centres) <= {centre.index for centre in CENTRES}:
        raise ValueError(f"centres must be different numbers from 0 to {len(CENTRES) - 1}, got {centres}")
    if first_patient + patients > 2 * _PER_BLOCK * len(centres):
        raise ValueError(f"{len(centres)} centres have at most {2 * _PER_BLOCK * len(centres)} patients")
    if not 0.2 <= mpp <= 8:
        raise ValueError(f"mpp is um per px and must be 0.2 to 8, got {mpp}")
    if size_um is not None and (size_um[0] < _MIN_SIZE_UM[0] or size_um[1] < _MIN_SIZE_UM[1]):
        least, given = (" x ".join(f"{side:g}" for side in sides) for sides in (_MIN_SIZE_UM, size_um))
        raise ValueError(f"a slide that can hold a macro-metastasis needs at least {least} um, got {given}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xC17]))
    stages = [stage for stage, count in _stage_counts(patients).items() for _ in range(count)]
    stages = [stages[index] for index in rng.permutation(len(stages))]
    mixtures = {stage: _compositions(rng, stage, stages.count(stage)) for stage in PatientStage}
    planned = []
    for index, stage in enumerate(stages, start=first_patient):
        centre, turn = centres[index % len(centres)], index // len(centres)
        number = turn // _PER_BLOCK * 100 + centre * _PER_BLOCK + turn % _PER_BLOCK
        labels = _node_labels(np.random.default_rng(np.random.SeedSequence([seed, number])), mixtures[stage].pop())
        slides = tuple(
            _plan_slide(
                label,
                patient=number,
                node=node,
                centre=centre,
                seed=seed,
                mpp=mpp,
                size_um=size_um,
                difficulty=difficulty,
            )
            for node, label in enumerate(labels)
        )
        planned.append(PatientPlan(name=f"patient_{number:03d}", centre=centre, stage=stage, slides=slides))
    return tuple(sorted(planned, key=lambda patient: patient.name))


def _stage_counts(patients: int) -> dict[PatientStage, int]:
    """Count the patients of each stage: largest remainders, and every stage at least once from five patients on."""
    weights = {stage: sum(mixture.values()) for stage, mixture in _COMPOSITIONS.items()}
    total = sum(weights.values())
    least = 1 if patients >= len(weights) else 0
    counts = {stage: max(least, patients * weight // total) for stage, weight in weights.items()}
    while sum(counts.values()) < patients:
        neediest = max(counts, key=lambda stage: patients * weights[stage] / total - counts[stage])
        counts[neediest] += 1
    while sum(counts.values()) > patients:
        richest = max(
            counts, key=lambda stage: (counts[stage] > least, counts[stage] - patients * weights[stage] / total)
        )
        counts[richest] -= 1
    return counts


def _compositions(rng: np.random.Generator, stage: PatientStage, count: int) -> list[tuple[int, int, int]]:
    """Draw mixtures of node labels for ``count`` patients, without replacement from the real patients."""
    real = [mixture for mixture, times in _COMPOSITIONS[stage].items() for _ in range(times)]
    drawn: list[tuple[int, int, int]] = []
    while len(drawn) < count:
        drawn.extend(real[index] for index in rng.permutation(len(real)))
    return drawn[:count]


def _node_labels(rng: np.random.Generator, mixture: tuple[int, int, int]) -> list[SlideLabel]:
    itc, micro, macro = mixture
    labels = [SlideLabel.ITC] * itc + [SlideLabel.MICRO] * micro + [SlideLabel.MACRO] * macro
    labels += [SlideLabel.NEGATIVE] * (NODES - len(labels))
    return [labels[index] for index in rng.permutation(NODES)]


def _plan_slide(
    label: SlideLabel,
    *,
    patient: int,
    node: int,
    centre: int,
    seed: int,
    mpp: float,
    size_um: tuple[float, float] | None,
    difficulty: Difficulty,
) -> SlidePlan:
    rng = np.random.default_rng(np.random.SeedSequence([seed, patient, node]))
    drawn = float(rng.uniform(9000, 14000))
    width, height = size_um or (drawn, float(np.clip(drawn * rng.uniform(0.62, 0.9), 7000, 12000)))
    lesions = _plan_lesions(rng, label, width)
    largest = lesions[0].diameter_um if lesions else 0.0
    return SlidePlan(
        name=f"patient_{patient:03d}_node_{node}",
        patient=patient,
        node=node,
        centre=centre,
        seed=seed,
        difficulty=difficulty,
        label=label,
        mpp=mpp * CENTRES[centre].mpp_factor,
        width_um=width,
        height_um=height,
        pieces=2 if largest < 0.1 * width and rng.random() < 0.25 else 1,
        fatty=bool(largest < 0.25 * width and rng.random() < 0.4),
        pen=bool(rng.random() < 0.12),
        fold=bool(rng.random() < 0.3),
        lesions=lesions,
    )


def _plan_lesions(rng: np.random.Generator, label: SlideLabel, width_um: float) -> tuple[LesionPlan, ...]:
    """Plan the lesion that decides the label, and on some slides smaller ones beside it."""
    if label is SlideLabel.NEGATIVE:
        return ()
    largest = _draw_diameter(rng, label, width_um)
    diameters = [largest]
    if label is not SlideLabel.ITC:
        more = int(min(rng.poisson(0.8), 3))
        diameters += np.exp(rng.uniform(np.log(70), np.log(min(0.6 * largest, 900)), more)).tolist()
    elif rng.random() < 0.3:
        diameters.append(float(rng.uniform(0.5, 0.9)) * largest)
    return tuple(
        LesionPlan(
            diameter_um=diameter,
            deposits=int(rng.choice([1, 1, 1, 2, 3, 4])) if diameter < 1500 else 1,
            island=bool(diameter > 600 and rng.random() < 0.4),
            loop=bool(rng.random() < 0.3),
        )
        for diameter in sorted(diameters, reverse=True)
    )


def _draw_diameter(rng: np.random.Generator, label: SlideLabel, width_um: float) -> float:
    """Draw a diameter in um for the label: log-uniform, every fourth close to a limit of the size rule."""
    rule = SizeRule()
    low, high, edges = {
        SlideLabel.ITC: (60.0, 195.0, (0.95 * rule.itc_max_um,)),
        SlideLabel.MICRO: (210.0, 1950.0, (1.05 * rule.itc_max_um, 0.95 * rule.micro_max_um)),
        SlideLabel.MACRO: (2050.0, min(6000.0, max(2100.0, 0.48 * width_um)), (1.05 * rule.micro_max_um,)),
    }[label]
    if rng.random() < 0.25:
        return float(rng.choice(edges))
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
