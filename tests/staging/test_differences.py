"""Differences between two submissions on the same slides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from staging.cli import app
from staging.errors import CohortError, ConfigurationError
from staging.lesions.labels import SlideLabel
from staging.scores.differences import Judged, paired_difference
from staging.scores.froc import SlideHits, Target
from staging.scores.lesion_task import compare_scores, score_slides
from staging.scores.roc import judged
from staging.scores.several import holm
from staging.scores.slides import compare_areas, compare_labels, score_auc, score_labels

LABELS = list(SlideLabel)


def readers(seed: int, slides: int = 40) -> tuple[dict[str, bool], dict[str, float], dict[str, float]]:
    """Truth and the correlated scores of two readers, five slides of a patient."""
    random = np.random.default_rng(seed)
    names = [f"patient_{at // 5:03d}_node_{at % 5}" for at in range(slides)]
    truth = random.random(slides) < 0.4
    truth[:2] = True, False
    both = random.multivariate_normal((0, 0), ((1, 0.6), (0.6, 1)), slides) + truth[:, None] * (2.0, 1.0)
    return (
        dict(zip(names, truth.tolist(), strict=True)),
        dict(zip(names, both[:, 0].tolist(), strict=True)),
        dict(zip(names, both[:, 1].tolist(), strict=True)),
    )


def kernel(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """DeLong's components by every pair."""
    wins = scores[truth][:, None] - scores[~truth][None, :]
    won = np.where(wins > 0, 1.0, np.where(wins == 0, 0.5, 0.0))
    return won.mean(axis=1), won.mean(axis=0)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_correlation_of_two_areas_is_delongs_by_every_pair(seed: int, with_ties: bool) -> None:  # noqa: FBT001
    random = np.random.default_rng(seed)
    truth = np.arange(30) < 12
    scores = random.normal(size=(2, 30)) + truth
    scores = np.round(scores) if with_ties else scores
    groups = [str(at) for at in range(30)]
    one, other = (judged(truth, every, groups=groups) for every in scores)
    parts = [kernel(truth, every) for every in scores]
    areas = [of_positive.mean() for of_positive, _ in parts]
    assert [one.value, other.value] == pytest.approx(areas)

    def covariance(first: int, second: int) -> float:
        return float(
            sum(
                ((parts[first][kind] - areas[first]) * (parts[second][kind] - areas[second])).sum()
                / parts[first][kind].size ** 2
                for kind in (0, 1)
            )
        )

    expected = covariance(0, 1) / np.sqrt(covariance(0, 0) * covariance(1, 1))
    assert paired_difference(one, other).correlation == pytest.approx(expected)


@given(st.integers(0, 2**32 - 1))
def test_laws_of_a_difference(seed: int) -> None:
    truth, first, second = readers(seed)
    found, swapped = compare_areas(truth, first, second), compare_areas(truth, second, first)
    assert swapped.interval == pytest.approx([-found.interval[1], -found.interval[0]])
    assert swapped.p_value == pytest.approx(found.p_value, abs=1e-9)
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert (found.p_value < 0.05) == (found.interval[0] > 0 or found.interval[1] < 0)
    assert found.difference == pytest.approx(score_auc(truth, first).whole.auc - score_auc(truth, second).whole.auc)
    # the area knows the order of the scores alone
    same = compare_areas(truth, first, {name: value**3 for name, value in first.items()})
    assert (same.difference, same.interval, same.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_two_perfect_readers_are_not_known_to_be_equal() -> None:
    truth, _, _ = readers(0)
    one = {name: float(is_tumour) for name, is_tumour in truth.items()}
    other = {name: is_tumour + at / 1000 for at, (name, is_tumour) in enumerate(truth.items())}
    found = compare_areas(truth, one, other)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    low, high = found.interval
    assert low < -0.01
    assert high > 0.01


def test_a_flat_reader_differs_from_a_perfect_one() -> None:
    truth, _, _ = readers(1, slides=200)
    found = compare_areas(
        truth, {name: float(is_tumour) for name, is_tumour in truth.items()}, dict.fromkeys(truth, 0.5)
    )
    assert found.difference == 0.5
    assert found.p_value < 1e-6
    assert found.interval[0] > 0.3


@given(st.integers(0, 2**32 - 1))
def test_differences_of_labels(seed: int) -> None:
    random = np.random.default_rng(seed)
    names = [f"patient_{at // 5:03d}_node_{at % 5}" for at in range(50)]

    def table(ranks: NDArray[np.int64]) -> dict[str, SlideLabel]:
        return {name: LABELS[rank] for name, rank in zip(names, ranks.tolist(), strict=True)}

    truth = random.integers(0, 4, 50)
    first, second = (np.where(random.random(50) < right, truth, random.integers(0, 4, 50)) for right in (0.9, 0.6))
    scores = [score_labels(table(truth), table(ranks)) for ranks in (first, second)]
    found = compare_labels(*scores)
    records = [one.to_json() for one in scores]
    for name, one in found.items():
        assert one.values == pytest.approx([record[name] for record in records])
        assert one.interval[0] <= one.difference <= one.interval[1]
        assert compare_labels(*scores[::-1])[name].interval == pytest.approx([-one.interval[1], -one.interval[0]])
    assert {one.p_value for one in compare_labels(scores[0], scores[0]).values()} == {1.0}


def froc_slides(seed: int, found: float) -> list[SlideHits]:
    random = np.random.default_rng(seed)
    target = Target(number=1, major_axis_px=50.0, is_itc=False, area_px=9, centroid=(0.0, 0.0))
    made = []
    for at in range(30):
        lesions = 2 if at % 3 == 0 else 0
        hits = tuple(float(random.random()) if random.random() < found else None for _ in range(lesions))
        made.append(
            SlideHits(slide=f"s{at:02d}", targets=(target,) * lesions, hits=hits, false_positives=random.random(2))
        )
    return made


def test_differences_of_froc_scores() -> None:
    good, poor = (score_slides(froc_slides(3, share), resamples=0) for share in (0.95, 0.3))
    found = compare_scores(good, poor)
    record = good.to_json(), poor.to_json()
    assert found["official"].values == pytest.approx([one["froc_score"] for one in record])
    assert found["corrected"].values == pytest.approx([one["corrected"]["froc_score"] for one in record])
    for one in found.values():
        assert one.p_value < 0.05
        assert one.interval[0] > 0
    same = compare_scores(good, score_slides(froc_slides(3, 0.95), resamples=0))
    assert [(one.interval, one.p_value) for one in same.values()] == [((0.0, 0.0), 1.0)] * 2


def test_where_nothing_varies_the_single_intervals_decide() -> None:
    def sure(value: float, interval: tuple[float, float]) -> Judged:
        return Judged(value=value, added=np.zeros(5), interval=lambda _: interval)

    found = paired_difference(sure(1.0, (0.8, 1.0)), sure(0.5, (0.3, 0.7)))
    assert found.interval == pytest.approx((0.5 - np.hypot(0.2, 0.2), 0.5 + 0.2))
    assert found.correlation == 0


def told(*command: object) -> tuple[dict[str, Any], str]:
    done = CliRunner().invoke(app, [str(one) for one in command], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def test_several_submissions_are_compared_at_once(tmp_path: Path) -> None:
    truth, first, second = readers(5)
    (tmp_path / "truth.csv").write_text(
        "slide,label\n" + "".join(f"{name},{'macro' if one else 'negative'}\n" for name, one in truth.items())
    )
    for name, scores in (("a", first), ("b", second), ("c", {one: -value for one, value in first.items()})):
        (tmp_path / f"{name}.csv").write_text("".join(f"{one},{value}\n" for one, value in scores.items()))
    tables = [tmp_path / f"{name}.csv" for name in "abc"]
    record, text = told(
        "score", "auc", tmp_path / "truth.csv", tables[0], "--against", tables[1], "--against", tables[2]
    )
    assert [one["submission"] for one in record["against"]] == [str(table) for table in tables[1:]]
    assert {one["comparisons"] for one in record["against"]} == {2}
    known = [one["p_value"] for one in record["against"]]
    assert [one["p_adjusted"] for one in record["against"]] == pytest.approx(holm(known))
    assert f"minus {tables[2]}: difference of auc 0." in text
    assert "adjusted for 2 comparisons" in text
    record, text = told("score", "auc", tmp_path / "truth.csv", tables[0], "--against", tables[1])
    assert "adjusted" not in text
    labels = [tmp_path / f"{name}_labels.csv" for name in "ab"]
    for table, flip in zip(labels, (0, 3), strict=True):
        rows = (
            f"{name},{'macro' if one != (at < flip) else 'negative'}\n" for at, (name, one) in enumerate(truth.items())
        )
        table.write_text("slide,label\n" + "".join(rows))
    record, _ = told("score", "labels", tmp_path / "truth.csv", labels[0], "--against", labels[1])
    assert [one["score"] for one in record["against"]] == ["accuracy", "balanced_accuracy"]
    assert record["against"][0]["difference"] == pytest.approx(3 / 40)
    with pytest.raises(ConfigurationError, match=r"b\.csv: is given twice to --against"):
        told("score", "auc", tmp_path / "truth.csv", tables[0], "--against", tables[1], "--against", tables[1])
    (tmp_path / "half.csv").write_text("".join(tables[1].read_text().splitlines(keepends=True)[:9]))
    with pytest.raises(CohortError, match=r"half\.csv: there is no prediction for"):
        told("score", "auc", tmp_path / "truth.csv", tables[0], "--against", tmp_path / "half.csv")


def test_what_makes_a_score_doubtful_is_said(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("slide,label\nS1 A.tif,macro\nS1 B.tif,negative\ntumor_001,macro\n")
    (tmp_path / "run.csv").write_text(
        "slide,label,tissue_mm2,looked_mm2,seen\nS1 A,macro,1,1,whole\nS1 B,micro,1,1,whole\ntumor_001,itc,1,1,whole\n"
    )
    record, text = told("score", "labels", tmp_path / "truth.csv", tmp_path / "run.csv")
    assert record["slides_without_patient"] == 3
    assert "2 slides of no known patient count as independent (s1 a, s1 b): give --patients" in text
    assert "is it the reference?" not in text
    _, text = told("score", "labels", tmp_path / "run.csv", tmp_path / "truth.csv")
    assert f"{tmp_path / 'run.csv'} says how much was looked at, as the table of a run does" in text
    (tmp_path / "map.csv").write_text("S1 A,S1\nS1 B,S1\ntumor_001,T\n")
    patients = ("--patients", tmp_path / "map.csv")
    record, text = told("score", "labels", tmp_path / "truth.csv", tmp_path / "run.csv", *patients, "-q")
    assert (record["slides_without_patient"], record["patients"], text) == (0, 2, "")


@pytest.mark.slow
def test_a_result_that_cannot_be_printed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("patient,stage\npatient_000.zip,pN0\npatient_001.zip,pN2\n")
    command = [sys.executable, "-m", "staging", "score", "kappa", *[str(tmp_path / "s.csv")] * 2, "-q"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 74
    assert done.stderr.splitlines()[-1].startswith("sentinode: error: the result cannot be printed: No space left")
    assert "Traceback" not in done.stderr
