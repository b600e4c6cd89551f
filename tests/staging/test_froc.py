"""FROC: every case is scored by the organisers' steps on whole images as well, and must agree to 1e-12."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage

from staging.errors import CohortError, TableError
from staging.lesions.detections import Detections
from staging.scores.froc import FrocCurve, SlideHits, evaluation_mask, grown_px, itc_px, major_axis, slide_hits
from staging.scores.lesion_task import FrocScore, score_slides

Rows = list[tuple[float, float, float]]
Case = list[tuple[NDArray[np.bool_] | None, Rows]]
RATES = (0.25, 0.5, 1, 2, 4, 8)


# --- the organisers' steps, on whole images -------------------------------------------------------------------------


def oracle_labels(tumour: NDArray[np.bool_], level: int = 5) -> NDArray[np.int32]:
    distance = ndimage.distance_transform_edt(~tumour)
    filled = ndimage.binary_fill_holes(distance < 75 / (0.243 * 2**level * 2))
    return np.asarray(ndimage.label(filled, structure=np.ones((3, 3)))[0], dtype=np.int32)


def oracle_axis(inside: NDArray[np.bool_]) -> float:
    points = np.argwhere(inside).astype(float)
    spread = np.cov(points.T, bias=True) if len(points) > 1 else np.zeros((2, 2))
    return float(4 * np.sqrt(np.linalg.eigvalsh(spread).max().clip(0)))


def oracle_froc(case: Case) -> tuple[float, list[float]]:
    alarms: list[float] = []
    hits: list[np.float32] = []
    lesions = 0
    for tumour, rows in case:
        if tumour is None:
            alarms += [row[0] for row in rows]
            continue
        labels = oracle_labels(tumour)
        count = int(labels.max())
        itc = [number for number in range(1, count + 1) if oracle_axis(labels == number) < 275 / (0.243 * 32)]
        best = np.zeros(count, dtype=np.float32)
        for probability, x, y in rows:
            number = labels[int(y) // 32, int(x) // 32]
            if number == 0:
                alarms.append(probability)
            elif number not in itc and probability > float(best[number - 1]):
                best[number - 1] = probability
        hits += list(best)
        lesions += count - len(itc)
    scores = sorted({*map(float, alarms), *map(float, hits)})
    false_positives, sensitivity = [0.0], [0.0]
    for threshold in scores[:0:-1]:
        false_positives.append(sum(alarm >= threshold for alarm in alarms) / len(case))
        # NumPy compares an array of float32 with a Python number in float32
        sensitivity.append(sum(hit >= np.float32(threshold) for hit in hits) / lesions)
    at_rates = [float(np.interp(rate, false_positives, sensitivity)) for rate in RATES]
    return sum(at_rates) / 6, at_rates


def scored(case: Case, *, resamples: int = 0, seed: int = 0) -> FrocScore:
    slides = [hits_of(number, *slide) for number, slide in enumerate(case)]
    return score_slides(slides, resamples=resamples, seed=seed)


def hits_of(number: int, tumour: NDArray[np.bool_] | None, rows: Rows) -> SlideHits:
    mask = None if tumour is None else evaluation_mask(tumour)
    return slide_hits(f"slide_{number}", mask, Detections.of(rows))


# --- what cases are built from --------------------------------------------------------------------------------------


def indices(tumour: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, columns = np.meshgrid(*(np.arange(side, dtype=np.int64) for side in tumour.shape), indexing="ij")
    return rows, columns


def blank() -> NDArray[np.bool_]:
    return np.zeros((140, 170), dtype=np.bool_)


def painted(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Boxes (row, column, height, width) of tumour."""
    tumour = blank()
    for row, column, height, width in boxes:
        tumour[row : row + height, column : column + width] = True
    return tumour


def at(row: int, column: int, probability: float = 0.9) -> tuple[float, float, float]:
    return probability, column * 32 + 16, row * 32 + 16


def ring(radius: int, thickness: int) -> NDArray[np.bool_]:
    rows, columns = np.indices((140, 170))
    distance = np.hypot(rows - 70, columns - 80)
    return (distance <= radius) & (distance > radius - thickness)


BIG = (40, 40, 30, 50)
OTHER = (100, 100, 30, 50)
SMALL = (10, 120, 3, 3)

CASES: dict[str, tuple[Case, float | None]] = {
    "one perfect hit on one lesion is worth nothing": ([(painted(BIG), [at(50, 60)])], 0.0),
    "the same with a missed lesion beside it": ([(painted(BIG, OTHER), [at(50, 60)])], 0.5),
    "the same with an ITC beside it": ([(painted(BIG, SMALL), [at(50, 60)])], 1.0),
    "the same with a fainter false positive": ([(painted(BIG), [at(50, 60), at(5, 5, 0.1)])], 1.0),
    "two lesions, two hits, the lower one dropped": ([(painted(BIG, OTHER), [at(50, 60), at(110, 120, 0.8)])], 0.5),
    "two lesions, two hits of one score": ([(painted(BIG, OTHER), [at(50, 60), at(110, 120)])], 0.0),
    "no detections at all": ([(painted(BIG), []), (None, [])], 0.0),
    "detections on normal slides only": ([(painted(BIG), []), (None, [at(5, 5), at(6, 6, 0.2)])], 0.0),
    "a detection on an ITC only": ([(painted(BIG, SMALL), [at(11, 121)])], 0.0),
    "an ITC is neither hit nor false": ([(painted(BIG, SMALL), [at(11, 121), at(50, 60)])], 1.0),
    "several hits on a lesion count once": (
        [(painted(BIG, OTHER), [at(50, 60), at(51, 61, 0.7), at(45, 45, 0.8)])],
        0.5,
    ),
    "several false positives count each": (
        [(painted(BIG, OTHER), [at(50, 60, 0.5), at(5, 5), at(5, 6), at(6, 6)])],
        None,
    ),
    "the lowest score of a hit is dropped": (
        [(painted(BIG, OTHER), [at(50, 60), at(110, 120, 0.2), at(5, 5, 0.5)])],
        None,
    ),
    "a hit and a false positive of one score, a float32": (
        [(painted(BIG, OTHER), [at(50, 60, 0.5), at(5, 5, 0.5)])],
        None,
    ),
    "the same at 0.3, whose float32 is higher": ([(painted(BIG, OTHER), [at(50, 60, 0.3), at(5, 5, 0.3)])], None),
    "the same at 0.7, whose float32 is lower": ([(painted(BIG, OTHER), [at(50, 60, 0.7), at(5, 5, 0.7)])], None),
    "0.3 as the lowest of all": ([(painted(BIG), [at(50, 60, 0.3), at(5, 5, 0.3)])], None),
    "0.7 as the lowest of all": ([(painted(BIG), [at(50, 60, 0.7), at(5, 5, 0.7)])], None),
    "a hit of probability 0 is a miss": ([(painted(BIG, OTHER), [at(50, 60, 0.0), at(110, 120)])], 0.5),
    "a false positive of probability 0": ([(painted(BIG, OTHER), [at(5, 5, 0.0), at(110, 120)])], 0.5),
    "a hit below the smallest float32": ([(painted(BIG, OTHER), [at(50, 60, 1e-60), at(110, 120)])], 0.5),
    "all scores 1": ([(painted(BIG, OTHER), [at(50, 60, 1.0), at(110, 120, 1.0), at(5, 5, 1.0)])], None),
    "equal rows twice": ([(painted(BIG, OTHER), [at(50, 60), at(50, 60), at(5, 5, 0.4), at(5, 5, 0.4)])], None),
    "more than 8 false positives per slide first": (
        [(painted(BIG, OTHER), [at(50, 60, 0.3), *(at(5, column, 0.5) for column in range(20))])],
        None,
    ),
    "exactly a quarter false positive per slide": (
        [(painted(BIG, OTHER), [at(50, 60, 0.3), at(5, 5)]), *[(None, [])] * 3],
        None,
    ),
    "exactly 8 false positives per slide": (
        [(painted(BIG, OTHER), [at(50, 60, 0.3), *(at(5, column, 0.5) for column in range(8))])],
        None,
    ),
    "a curve between the rates": (
        [(painted(BIG, OTHER), [at(50, 60, 0.3), at(5, 5), at(5, 9, 0.6), at(110, 120, 0.5)]), (None, [at(9, 9, 0.4)])],
        None,
    ),
    "many normal slides dilute false positives": (
        [(painted(BIG, OTHER), [at(50, 60, 0.3), at(5, 5)]), *[(None, [])] * 39],
        None,
    ),
    "two tumour slides": ([(painted(BIG), [at(50, 60)]), (painted(OTHER), [at(110, 120, 0.8), at(5, 5, 0.85)])], None),
    "a tumour slide of ITC only": (
        [(painted(SMALL), [at(11, 121), at(60, 60)]), (painted(BIG), [at(50, 60, 0.5)])],
        None,
    ),
    "a hit on the growth, not on the tumour": ([(painted(BIG, OTHER), [at(36, 60)])], 0.5),
    "four pixels from the tumour is the lesion": ([(painted(BIG, OTHER), [at(50, 36)])], 0.5),
    "five pixels from the tumour is background": ([(painted(BIG, OTHER), [at(50, 35)])], 0.0),
    "diagonally (3, 3) from a corner is the lesion": ([(painted(BIG, OTHER), [at(37, 37)])], 0.5),
    "diagonally (4, 3) from a corner is background": ([(painted(BIG, OTHER), [at(36, 37)])], 0.0),
    "the last level-0 px of a pixel": ([(painted(BIG, OTHER), [(0.9, 37 * 32 - 1, 50 * 32)])], 0.5),
    "a level-0 px before it": ([(painted(BIG, OTHER), [(0.9, 36 * 32 - 1, 50 * 32)])], 0.0),
    "fractions of level-0 px are cut": ([(painted(BIG, OTHER), [(0.9, 36 * 32 - 0.25, 50 * 32)])], 0.0),
    "fractions above -1 are pixel 0": ([(painted((0, 0, 40, 40), OTHER), [(0.9, -0.75, -0.75)])], 0.5),
    "the last pixel of the slide": ([(painted(BIG, OTHER), [(0.9, 170 * 32 - 1, 140 * 32 - 1)])], 0.0),
    "a hole is filled": ([(ring(40, 8) | painted(SMALL), [at(70, 80)])], 1.0),
    "an island in a hole is the same lesion": ([(ring(50, 6) | painted((68, 78, 5, 5), SMALL), [at(55, 80)])], 1.0),
    "a bay open to the side is no hole": (
        [(painted((30, 30, 8, 80), (90, 30, 8, 80), (30, 30, 68, 8), SMALL), [at(65, 90)])],
        0.0,
    ),
    "a bay closed by the edge of the slide is no hole": (
        [(painted((30, 0, 8, 60), (90, 0, 8, 60), (30, 52, 68, 8), SMALL), [at(65, 20)])],
        0.0,
    ),
    "a gap of 8 px between tumours is bridged": (
        [(painted((20, 20, 30, 30), (20, 58, 30, 30), SMALL), [at(30, 25)])],
        1.0,
    ),
    "a gap of 9 px is not": ([(painted((20, 20, 30, 30), (20, 59, 30, 30), SMALL), [at(30, 25)])], 0.5),
    "a gap over the corner is bridged": ([(painted((20, 20, 30, 30), (56, 56, 30, 30), SMALL), [at(30, 25)])], None),
    "tumour in every corner": (
        [(painted((0, 0, 40, 5), (0, 165, 40, 5), (100, 0, 40, 5), (100, 165, 40, 5)), [at(0, 0)])],
        0.25,
    ),
    "tumour everywhere": ([(~blank(), [at(50, 60)]), (painted(BIG), [])], 0.5),
    "single pixels are ITC": ([(painted((20, 20, 1, 1), (60, 60, 1, 1), OTHER), [at(20, 20), at(110, 120)])], 1.0),
    "a line just too short to count": ([(painted((60, 60, 1, 28), OTHER), [at(60, 70)])], None),
    "a line just long enough": ([(painted((60, 60, 1, 29), OTHER), [at(60, 70)])], None),
}


@pytest.mark.parametrize("name", CASES)
def test_official_number(name: str) -> None:
    case, expected = CASES[name]
    result = scored(case).to_json()
    theirs, at_rates = oracle_froc(case)
    assert result["froc_score"] == pytest.approx(theirs, abs=1e-12)
    assert result["sensitivities"] == pytest.approx(at_rates, abs=1e-12)
    if expected is not None:
        assert result["froc_score"] == pytest.approx(expected, abs=1e-12)


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40


def test_the_corrected_number_uses_the_lowest_score() -> None:
    perfect = scored(CASES["one perfect hit on one lesion is worth nothing"][0]).to_json()
    assert (perfect["froc_score"], perfect["corrected"]["froc_score"]) == (0.0, 1.0)
    both = scored(CASES["two lesions, two hits, the lower one dropped"][0]).to_json()
    assert (both["froc_score"], both["corrected"]["froc_score"]) == (0.5, 1.0)
    # at 0.3 the organisers let the hit pass a threshold that the false positive of the same score does not
    tie = scored(CASES["the same at 0.3, whose float32 is higher"][0]).to_json()
    assert tie["sensitivities"][0] == 0.5
    assert tie["corrected"]["sensitivities"][0] == 0.125


# --- the evaluation mask --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.bool_, st.tuples(st.integers(1, 30), st.integers(1, 30)), elements=st.booleans()),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.002, 0.01, 0.05]),
    st.integers(4, 7),
)
def test_window_equals_the_whole_image(patch: NDArray[np.bool_], seed: int, density: float, level: int) -> None:
    random = np.random.default_rng(seed)
    tumour = random.random((90, 110)) < density
    row, column = int(random.integers(0, 90 - patch.shape[0])), int(random.integers(0, 110 - patch.shape[1]))
    tumour[row : row + patch.shape[0], column : column + patch.shape[1]] |= patch
    tumour[45, 50] = True
    ours = evaluation_mask(tumour, level=level)
    theirs = oracle_labels(tumour, level)
    rows, columns = indices(tumour)
    np.testing.assert_array_equal(ours.at(rows, columns), theirs)
    assert [target.number for target in ours.targets] == list(range(1, theirs.max() + 1))
    for target in ours.targets:
        inside = theirs == target.number
        assert target.area_px == inside.sum()
        assert target.major_axis_px == pytest.approx(oracle_axis(inside), rel=1e-9, abs=1e-6)
        middle = (np.argwhere(inside).mean(axis=0)[::-1] + 0.5) * 2**level
        assert target.centroid == pytest.approx(tuple(middle))


def test_a_part_with_margin_equals_the_whole() -> None:
    tumour = ring(30, 5) | painted((60, 70, 20, 20))
    whole = evaluation_mask(tumour)
    part = evaluation_mask(tumour[30:115, 40:125], origin=(30, 40), is_whole=False)
    rows, columns = indices(tumour)
    np.testing.assert_array_equal(part.at(rows, columns), whole.at(rows, columns))
    assert part.targets == whole.targets
    assert part.shape is None


def test_thresholds() -> None:
    assert grown_px(5) == pytest.approx(4.82253, abs=5e-6)
    assert itc_px(5) == pytest.approx(35.36523, abs=5e-6)


# made with scikit-image 0.26, regionprops(...)[0].axis_major_length
@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1, 1, 0.0),
        (1, 7, 8.0),
        (3, 5, 5.656854249492381),
        (1, 35, 40.39801975344831),
        (1, 36, 41.55317877932646),
    ],
)
def test_major_axis_is_that_of_scikit_image(height: int, width: int, expected: float) -> None:
    rows, columns = np.nonzero(np.ones((height, width)))
    assert major_axis(rows, columns) == pytest.approx(expected, abs=1e-12)


def test_itc_ends_where_the_rule_says() -> None:
    for length in range(20, 40):
        tumour = painted((60, 60, 1, length))
        (target,) = evaluation_mask(tumour).targets
        assert target.is_itc == (oracle_axis(oracle_labels(tumour) > 0) < 275 / (0.243 * 32))
    assert evaluation_mask(painted((60, 60, 1, 20))).targets[0].is_itc
    assert not evaluation_mask(painted((60, 60, 1, 39))).targets[0].is_itc


# --- where theirs stops, or invents something -----------------------------------------------------------------------


@pytest.mark.parametrize(("x", "y"), [(170 * 32, 5.0), (5.0, 140 * 32), (-32.0, 5.0), (5.0, -1.0), (1e7, 5.0)])
def test_detections_outside_the_mask_are_refused(x: float, y: float) -> None:
    with pytest.raises(TableError, match=r"outside the mask of slide_0, which ends at x 5440, y 4480"):
        hits_of(0, painted(BIG), [at(50, 60), (0.5, x, y)])


def test_on_a_normal_slide_positions_do_not_matter() -> None:
    assert hits_of(0, None, [(0.5, 1e7, -4.0)]).false_positives.tolist() == [0.5]


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ([], "no slides"),
        ([(None, [at(5, 5)])], "no slide has a lesion:"),
        ([(painted(SMALL), [])], "larger than isolated"),
    ],
)
def test_without_lesions_no_score(case: Case, reason: str) -> None:
    with pytest.raises(CohortError, match=reason):
        scored(case)


def test_a_blank_mask_is_no_evaluation_mask() -> None:
    with pytest.raises(ValueError, match="needs tumour"):
        evaluation_mask(blank())


@pytest.mark.parametrize("level", [2, 9])
def test_levels_are_limited(level: int) -> None:
    with pytest.raises(ValueError, match="level must be"):
        evaluation_mask(painted(BIG), level=level)


# --- tables and intervals -------------------------------------------------------------------------------------------


def test_lesion_table() -> None:
    rows = scored([(painted(BIG, OTHER, SMALL), [at(50, 60, 0.3), at(45, 45, 0.8), at(11, 121, 0.6)])]).lesion_table()
    assert [(row["lesion"], row["status"], row["probability"]) for row in rows] == [
        (1, "itc", 0.6), (2, "hit", 0.8), (3, "missed", None)
    ]  # fmt: skip
    assert (rows[1]["x"], rows[1]["y"]) == pytest.approx((65 * 32, 55 * 32))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_weights_are_repeated_slides(seed: int) -> None:
    """The curve of a bootstrap sample is the curve of a set that holds its slides as often as it drew them."""
    random = np.random.default_rng(seed)
    masks = [painted(BIG, OTHER, SMALL), painted(BIG), painted(OTHER), None, None]
    case: Case = []
    for tumour in masks:
        scores = random.choice([0.0, 0.3, 0.5, 0.7, 0.9], 4).tolist()
        positions = random.choice([(50, 60), (110, 120), (5, 5)], 4).tolist()
        case.append((tumour, [at(row, column, score) for (row, column), score in zip(positions, scores, strict=True)]))
    weights = random.multinomial(5, np.full(5, 0.2))
    slides = [hits_of(number, *slide) for number, slide in enumerate(case)]
    repeated = [slide for slide, weight in zip(case, weights.tolist(), strict=True) for _ in range(weight)]
    ours = FrocCurve(slides, official=True).sensitivities(weights)
    if any(tumour is not None for tumour, _ in repeated):
        assert ours == pytest.approx(oracle_froc(repeated)[1], abs=1e-12)
        again = FrocCurve([hits_of(0, *slide) for slide in repeated], official=False).sensitivities()
        assert FrocCurve(slides, official=False).sensitivities(weights) == pytest.approx(again, abs=1e-12)
    else:
        assert np.isnan(ours).any()


def test_interval_is_seeded_and_brackets_the_score() -> None:
    random = np.random.default_rng(1)
    case: Case = [
        (painted(BIG, SMALL), [at(50, 60, float(random.random()))] if random.random() < 0.7 else []) for _ in range(20)
    ]
    one = scored(case, resamples=200, seed=3)
    assert one.bootstraps == scored(case, resamples=200, seed=3).bootstraps
    assert one.bootstraps != scored(case, resamples=200, seed=4).bootstraps
    assert one.intervals == scored(case, resamples=0).intervals
    for low, high in (one.bootstraps[0], one.intervals[0]):
        assert 0 < low < one.to_json()["froc_score"] < high < 1
    assert scored(case).to_json()["bootstrap"] == [None, None]


def test_everything_found_on_few_slides_is_not_certain() -> None:
    found = [scored([(painted(BIG), [at(50, 60, 0.9)])] * count).intervals[1] for count in (2, 10, 40)]
    assert all(high == 1 for _, high in found)
    lows = [low for low, _ in found]
    assert lows == sorted(lows)
    assert lows[0] < 0.5
    assert lows[-1] > 0.9


def test_the_score_without_a_patient_is_that_of_the_others() -> None:
    random = np.random.default_rng(2)
    case: Case = [
        (painted(BIG, SMALL), [at(50, 60, float(random.random())), at(9, 9, float(random.random()))]) for _ in range(6)
    ]
    hits = [hits_of(number, *slide) for number, slide in enumerate(case)]
    owners = np.array([0, 0, 1, 2, 2, 2])
    for official in (True, False):
        left = FrocCurve(hits, official=official).left_out(owners)
        for owner in range(3):
            kept = [one for one, of in zip(hits, owners, strict=True) if of != owner]
            assert left[owner] == pytest.approx(FrocCurve(kept, official=official).sensitivities().mean())


def test_curve_begins_at_nothing_and_never_falls() -> None:
    for case, _ in CASES.values():
        for official in (True, False):
            points = FrocCurve([hits_of(0, *slide) for slide in case], official=official).points()
            assert points[0].tolist() == [0.0, 0.0]
            assert (np.diff(points, axis=0) >= 0).all()
            assert points[:, 1].max() <= 1
            assert not math.isnan(points.sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_random_sets_agree_with_the_organisers(seed: int) -> None:
    random = np.random.default_rng(seed)
    case: Case = [(painted(BIG), [at(50, 60)])]
    for _ in range(int(random.integers(0, 6))):
        tumour = None
        if random.random() < 0.6:
            corners = random.integers(0, (130, 160), (int(random.integers(1, 6)), 2)).tolist()
            sides = random.integers(1, 45, (len(corners), 2)).tolist()
            tumour = painted(*((*corner, *side) for corner, side in zip(corners, sides, strict=True)))
        count = int(random.integers(0, 12))
        scores = random.choice([random.random(count), random.integers(0, 11, count) / 10])
        positions = random.integers(0, (140, 170), (count, 2))
        case.append(
            (tumour, [at(row, column, score) for (row, column), score in zip(positions.tolist(), scores, strict=True)])
        )
    result = scored(case).to_json()
    theirs, at_rates = oracle_froc(case)
    assert result["froc_score"] == pytest.approx(theirs, abs=1e-12)
    assert result["sensitivities"] == pytest.approx(at_rates, abs=1e-12)
