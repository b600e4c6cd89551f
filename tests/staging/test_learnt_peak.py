"""The peak that a training learns on negative slides, and what a run does with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_run import MPP, configuration, run

from staging.cohorts.camelyon import SlideFile, find_slides
from staging.lesions.finding import find_lesions
from staging.lesions.labels import SlideLabel
from staging.lesions.settings import peak_of, settings_of, with_peak
from staging.phantom import generate_cohort
from staging.training.labelled_cohort import WeightedSlide
from staging.training.peak import JudgedSlide, best_peak, calibrate_peak
from wsi.cnn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi.cnn.inference import infer
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide
from wsi.tissue import find_tissue

pytestmark = pytest.mark.slow  # its fixtures take seconds


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic patients at 8 um/px, on an ordinary and on the Philips-style centre."""
    folder = tmp_path_factory.mktemp("cohort")
    generate_cohort(folder, patients=2, centres=(0, 3), seed=11, mpp=MPP, workers=1)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Any]) -> Path:
    """A network with seeded random weights: its heatmaps mean nothing, but they are reproducible."""
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_checkpoint(path, make_checkpoint(mpp=MPP, seed=3))
    return path


def heatmap_of(slide: SlideFile, model: Path) -> Heatmap:
    with Slide.open(slide.path) as opened:
        return infer(opened, load_checkpoint(model), tissue=find_tissue(opened), device="cpu", workers=1)


def as_negative(slide: SlideFile) -> WeightedSlide:
    return WeightedSlide(slide=slide, label=SlideLabel.NEGATIVE, weight=1.0)


def just_below(peak: float) -> float:
    return float(np.nextafter(np.float32(peak), np.float32(0)))


def test_at_the_learnt_peak_no_lesion_of_the_negative_slide_survives(cohort: Path, model: Path) -> None:
    """Each slide on its own: a peak that were rounded would keep its lesion on every second one."""
    slides = find_slides([cohort / "images"])
    for slide in slides:
        peak, heatmap = calibrate_peak([as_negative(slide)], model, smallest_um=0.0).value, heatmap_of(slide, model)
        assert 0.5 < peak < 1
        assert find_lesions(heatmap, threshold=0.5, peak=peak)[0] == ()
        assert find_lesions(heatmap, threshold=0.5, peak=just_below(peak))[0] != ()
        # as float32, too: NumPy compares a heatmap with a number in the heatmap's type
        assert not (heatmap.array >= peak).any()
    assert len(slides) == 10


def test_the_learnt_peak_is_the_same_in_the_checkpoint_the_configuration_and_the_run(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    slides = find_slides([cohort / "images"])[:4]
    peak = calibrate_peak([*map(as_negative, slides)], model, smallest_um=60.0, workers=2).value
    assert peak == max(calibrate_peak([as_negative(slide)], model, smallest_um=60.0).value for slide in slides)
    checkpoint = load_checkpoint(model)
    learnt = tmp_path / "learnt.safetensors"
    save_checkpoint(learnt, replace(checkpoint, provenance=with_peak(checkpoint.provenance, peak)))
    assert peak_of(load_checkpoint(learnt).provenance) == peak
    for name, limit, expected in (("at", peak, False), ("below", just_below(peak), True)):
        result = run(slides, tmp_path / name, learnt, config=configuration(learnt, peak=limit))
        assert any(analysis.lesions for analysis in result.analyses) is expected
        assert json.loads((tmp_path / name / "run.json").read_text())["peak"] == limit
        heatmap = next((tmp_path / name / "heatmaps").iterdir())
        assert settings_of(heatmap, options={}).peak.value == limit


lesions = st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(1, 3)), max_size=4)
slides_with_lesions = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([1.0, 2.5]), lesions), min_size=1, max_size=8
)


def judged(truth: int, weight: float, found: list[tuple[float, int]]) -> JudgedSlide:
    probabilities, ranks = (np.array([one[at] for one in found]) for at in range(2))
    return JudgedSlide(
        truth=truth, weight=weight, probabilities=probabilities.astype(np.float64), ranks=ranks.astype(np.int64)
    )


def cost(slides: list[tuple[int, float, list[tuple[float, int]]]], peak: float) -> float:
    """The label cost, slide by slide."""
    return sum(
        weight * (max([rank for probability, rank in found if probability >= peak], default=0) - truth) ** 2
        for truth, weight, found in slides
    )


@given(slides_with_lesions)
def test_no_other_peak_labels_the_slides_better(slides: Any) -> None:
    peak = best_peak([judged(*one) for one in slides])
    assert 0.5 <= peak <= 1
    known = [probability for _, _, found in slides for probability, _ in found]
    others = [0.5, 1.0, *known, *(float(np.nextafter(np.float32(one), np.float32(2))) for one in known)]
    assert cost(slides, peak) <= min(cost(slides, one) for one in others if 0.5 <= one <= 1) + 1e-9


@given(st.floats(0.5, 0.875, width=32), st.floats(0.90625, 0.999, exclude_max=True).map(np.float32).map(float))
def test_where_slides_are_told_apart_the_peak_lies_in_the_middle(false: float, true: float) -> None:
    odds = [probability / (1 - probability) for probability in (false, true)]
    peak = best_peak([judged(0, 1.0, [(false, 2)]), judged(2, 1.0, [(true, 2)])])
    assert peak / (1 - peak) == pytest.approx(np.sqrt(odds[0] * odds[1]), rel=1e-4)


def test_one_certain_mistake_does_not_hide_every_metastasis() -> None:
    false = [[(one, 1)] for one in (0.999, *np.linspace(0.3, 0.8, 30).tolist())]
    slides = [judged(0, 1.0, one) for one in false]
    found = [judged(1, 1.0, [(one, 1)]) for one in (0.99, 0.95, 0.9, 0.85)]
    assert 0.8 < best_peak([*slides, *found]) < 0.85
    assert best_peak(slides) == pytest.approx(0.999)


def test_a_slide_counts_as_often_as_it_stands_for_others() -> None:
    false, true = [(0.95, 1)], [(0.9, 1)]
    assert best_peak([judged(0, 1.0, false), judged(1, 1.5, true)]) < 0.9
    assert best_peak([judged(0, 1.5, false), judged(1, 1.0, true)]) > 0.95


@pytest.mark.parametrize(("highest", "expected"), [(0.0, 0.5), (0.3, 0.5), (1.0, 1.0)])
def test_the_learnt_peak_lets_some_tumour_through(
    cohort: Path, model: Path, monkeypatch: pytest.MonkeyPatch, highest: float, expected: float
) -> None:
    """Where even a false lesion is certain, no peak is of use that is higher than every probability."""

    def certain(_slide: Slide, _model: Checkpoint, *, tissue: Mask, **_: Any) -> Heatmap:
        values = np.where(tissue.array, np.float32(highest), np.float32(0))
        return Heatmap(frame=tissue.frame, array=values, tissue=tissue.array)

    monkeypatch.setattr("wsi.cnn.inference.infer", certain)
    slide = as_negative(find_slides([cohort / "images"])[0])
    assert calibrate_peak([slide], model, smallest_um=0.0).value == expected
