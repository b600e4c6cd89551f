"""Can colour alone stage synthetic patients? It must not: tumour is a matter of nuclei, here as on real slides.

A random forest on the stain densities of a slide (haematoxylin and eosin at 8 or 16 um per px, each smoothed with a
standard deviation of 1, 2 and 4 px: six numbers) learns tumour from some patients and marks it on others. Threshold and
peak of its lesions are those with the best kappa on the training patients, judged by forests that did not see them.
Targets: kappa under 0.4, AUC of slides under 0.65.

Run: python benchmarks/colour_rule.py [--patients 12 --test-patients 30] [--seed 0] [--um 16 8]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from annotations import rasterize, read_annotations
from staging.lesions.finding import find_lesions
from staging.lesions.labels import SlideLabel, slide_label
from staging.phantom import generate_cohort
from staging.phantom.cohort import CohortTruth
from staging.scores.kappa import quadratic_kappa
from staging.stages.pn import PatientStage, stage_patient
from wsi.raster import Heatmap
from wsi.slide import Slide
from wsi.stain import separate
from wsi.tissue import find_tissue

_SIGMAS = (1.0, 2.0, 4.0)
_PER_CLASS = 1_500  # pixels of a slide that are learnt from, of tumour and of normal tissue
_TREES = 60
_THRESHOLDS = (0.4, 0.6, 0.8)
_PEAKS = (0.0, 0.8, 0.9, 0.95, 0.98)
_FOLDS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pixels:
    """The tissue of one slide: six numbers for every pixel, and which show tumour."""

    name: str
    patient: str
    label: SlideLabel
    tissue: Heatmap
    numbers: NDArray[np.float32]
    is_tumour: NDArray[np.bool_]


def pixels_of(folder: Path, truth: CohortTruth, um: float) -> Iterator[Pixels]:
    """Read the slides of a cohort one by one at ``um`` per pixel."""
    for slide_truth in truth.slides:
        with Slide.open(folder / "images" / f"{slide_truth.name}.tif") as slide:
            tissue = find_tissue(slide, um_per_px=um)
            stains = separate(slide.read_frame(tissue.frame).array)
        drawn = folder / "annotations" / f"{slide_truth.name}.xml"
        tumour = (
            rasterize(read_annotations(drawn), tissue.frame).array if drawn.exists() else np.zeros_like(tissue.array)
        )
        smooth = [ndimage.gaussian_filter(stain, sigma) for stain in stains for sigma in _SIGMAS]
        blank = np.zeros(tissue.array.shape, np.float32)
        yield Pixels(
            name=slide_truth.name,
            patient=slide_truth.name.partition("_node_")[0],
            label=slide_truth.label,
            tissue=Heatmap(frame=tissue.frame, array=blank, tissue=tissue.array),
            numbers=np.stack([one[tissue.array] for one in smooth], axis=1),
            is_tumour=tumour[tissue.array],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColourRule:
    """A forest of colours, and the settings of its lesions."""

    forest: RandomForestClassifier
    threshold: float
    peak: float

    def label(self, heatmap: Heatmap) -> SlideLabel:
        """Label a slide by the largest lesion of the forest's heatmap."""
        return label_of(heatmap, self.threshold, self.peak)


def learn(slides: Sequence[Pixels], seed: int) -> RandomForestClassifier:
    """Fit a forest to equally many pixels of every slide and class."""
    rng = np.random.default_rng(seed)
    numbers, classes = [], []
    for slide in slides:
        for is_tumour in (False, True):
            members = np.flatnonzero(slide.is_tumour == is_tumour)
            chosen = members[rng.permutation(len(members))[:_PER_CLASS]]
            numbers.append(slide.numbers[chosen])
            classes.append(np.full(len(chosen), is_tumour))
    forest = RandomForestClassifier(
        _TREES, min_samples_leaf=20, class_weight="balanced", n_jobs=2, random_state=seed, max_samples=0.5
    )
    return forest.fit(np.concatenate(numbers), np.concatenate(classes))


def heatmap_of(forest: RandomForestClassifier, slide: Pixels) -> Heatmap:
    """The forest's probability of tumour, smoothed a little, as a heatmap."""
    array = np.zeros(slide.tissue.array.shape, np.float32)
    array[slide.tissue.tissue] = forest.predict_proba(slide.numbers)[:, 1]
    smooth = np.where(slide.tissue.tissue, ndimage.gaussian_filter(array, 1.0), np.float32(0))
    return Heatmap(frame=slide.tissue.frame, array=smooth, tissue=slide.tissue.tissue)


def stages_of(slides: Sequence[Pixels], labels: Sequence[SlideLabel]) -> list[PatientStage]:
    """The stage of each patient, in order of name."""
    nodes: dict[str, list[SlideLabel]] = {}
    for slide, label in zip(slides, labels, strict=True):
        nodes.setdefault(slide.patient, []).append(label)
    return [stage_patient(nodes[patient]) for patient in sorted(nodes)]


def label_of(heatmap: Heatmap, threshold: float, peak: float) -> SlideLabel:
    """Label a slide by its largest lesion."""
    return slide_label(find_lesions(heatmap, threshold=threshold, peak=max(threshold, peak))[0])


def kappa_of(slides: Sequence[Pixels], labels: Sequence[SlideLabel]) -> float:
    """The quadratic kappa of stages."""
    truth = stages_of(slides, [slide.label for slide in slides])
    value = quadratic_kappa([one.rank for one in truth], [one.rank for one in stages_of(slides, labels)])
    return value if np.isfinite(value) else 0.0


def fit(training: Sequence[Pixels], seed: int) -> ColourRule:
    """Learn from slides; threshold and peak on each by a forest that did not see its patient."""
    patients = sorted({slide.patient for slide in training})
    fold = {patient: number % _FOLDS for number, patient in enumerate(patients)}
    unseen: dict[str, Heatmap] = {}
    for number in range(_FOLDS):
        forest = learn([slide for slide in training if fold[slide.patient] != number], seed)
        unseen |= {slide.name: heatmap_of(forest, slide) for slide in training if fold[slide.patient] == number}

    def kappa(settings: tuple[float, float]) -> float:
        return kappa_of(training, [label_of(unseen[slide.name], *settings) for slide in training])

    threshold, peak = max(product(_THRESHOLDS, _PEAKS), key=kappa)
    return ColourRule(forest=learn(training, seed), threshold=threshold, peak=peak)


def staged(rule: ColourRule, test: Sequence[Pixels]) -> dict[str, float]:
    """Kappa of the test patients and AUC of their slides, and of pixels."""
    heatmaps = [heatmap_of(rule.forest, slide) for slide in test]
    positive = [slide.label is not SlideLabel.NEGATIVE for slide in test]
    return {
        "kappa": kappa_of(test, [rule.label(one) for one in heatmaps]),
        "slide_auc": float(roc_auc_score(positive, [one.array.max() for one in heatmaps])),
        "pixel_auc": float(
            roc_auc_score(
                np.concatenate([slide.is_tumour for slide in test]),
                np.concatenate([one.array[one.tissue] for one in heatmaps]),
            )
        ),
        "threshold": rule.threshold,
        "peak": rule.peak,
    }


def main() -> None:
    """Draw both cohorts, learn, stage, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=12)
    parser.add_argument("--test-patients", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--um", type=float, nargs="+", default=[16.0, 8.0])
    chosen = parser.parse_args()
    with TemporaryDirectory() as name:
        cohorts = []
        for part, count, seed in (
            ("training", chosen.patients, chosen.seed),
            ("test", chosen.test_patients, chosen.seed + 1_000_003),
        ):
            folder = Path(name) / part
            truth = generate_cohort(folder, patients=count, centres=range(5), seed=seed, mpp=2.0, workers=2)
            cohorts.append((folder, truth))
        for um in chosen.um:
            training, test = (list(pixels_of(folder, truth, um)) for folder, truth in cohorts)
            found = staged(fit(training, chosen.seed), test)
            print(f"{um:g} um/px: " + ", ".join(f"{key} {value:.3g}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
