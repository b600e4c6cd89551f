from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

from staging.errors import CohortError
from staging.learned_labels.importance_picture import importance_picture
from staging.learned_labels.predictors import PREDICTOR_NAMES, in_words, slide_predictors
from staging.learned_labels.training import LabelledSlides, Recipe, gather, train_classifier, tune_limits
from staging.learned_labels.trees import Kind, SlideClassifier, fit, ranks_of, read_classifier, write_classifier
from staging.lesions.labels import SlideLabel
from wsi.errors import CheckpointError
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap

NAMES = ("first", "second", "third")


def examples(count: int = 80, *, labels: tuple[int, ...] = (0, 1, 2, 3)) -> tuple[NDArray[Any], NDArray[np.int64]]:
    rng = np.random.default_rng(5)
    ranks = np.array(labels)[np.arange(count) % len(labels)]
    return rng.normal(ranks[:, None], (0.5, 2.0, 9.0), (count, 3)), ranks


def oracle(kind: Kind, predictors: NDArray[Any], ranks: NDArray[np.int64]) -> Any:
    if kind == "forest":
        return RandomForestClassifier(n_estimators=20, class_weight="balanced", random_state=3).fit(predictors, ranks)
    grown = GradientBoostingClassifier(n_estimators=20, max_depth=2, subsample=0.7, random_state=3)
    return grown.fit(predictors, ranks)


@pytest.mark.parametrize("kind", ["forest", "boosting"])
@pytest.mark.parametrize("labels", [(0, 1, 2, 3), (0, 3), (0, 2, 3)])
def test_probabilities_are_those_of_scikit_learn(kind: Kind, labels: tuple[int, ...], tmp_path: Path) -> None:
    predictors, ranks = examples(labels=labels)
    model = fit(predictors, ranks, names=NAMES, kind=kind, trees=20, seed=3)
    write_classifier(tmp_path / "model.json", model)
    read = read_classifier(tmp_path / "model.json")
    assert read == model
    unseen = np.random.default_rng(8).normal(1.5, 3.0, (500, 3))
    expected = np.zeros((500, 4))
    expected[:, list(labels)] = oracle(kind, predictors, ranks).predict_proba(unseen)
    assert np.abs(read.predict(unseen) - expected).max() < 1e-12
    assert np.abs(read.predict(unseen).sum(axis=1) - 1).max() < 1e-12
    assert sum(read.importances) == pytest.approx(1.0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "sentinode slide classifier 1", "kind": "forest"}'])
def test_what_is_no_model(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.json: is not a slide classifier"):
        read_classifier(tmp_path / "model.json")


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    predictors, ranks = examples()
    record = fit(predictors, ranks, names=NAMES, trees=2).to_json()
    for name, value in (("left", 0), ("right", 10**6), ("feature", 9), ("feature", -1), ("value", [1.0])):
        damaged = json.loads(json.dumps(record))
        damaged["trees"][0][name][0] = value
        (tmp_path / "model.json").write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError):
            read_classifier(tmp_path / "model.json")
    with pytest.raises(ValueError, match="predictors must be"):
        SlideClassifier.from_json(record).predict(np.zeros((2, 5)))


shares = arrays(np.float64, (6, 4), elements=st.floats(0.01, 1)).map(
    lambda rows: rows / rows.sum(axis=1, keepdims=True)
)
limits = st.tuples(*[st.floats(0.05, 0.95)] * 3)


@settings(deadline=None, max_examples=100)
@given(shares, limits)
def test_the_worst_label_that_reaches_its_limit(
    probabilities: NDArray[np.float64], bounds: tuple[float, float, float]
) -> None:
    found = ranks_of(probabilities, bounds)
    for row, rank in zip(probabilities, found, strict=True):
        reached = [worse for worse in (1, 2, 3) if row[::-1].cumsum()[::-1][worse] >= bounds[worse - 1]]
        assert rank == max(reached, default=0)
    higher = ranks_of(probabilities, (bounds[0] + 0.1, bounds[1] + 0.1, bounds[2] + 0.1))
    assert (higher <= found).all()


def test_limits_are_tuned_to_the_kappa() -> None:
    ranks = np.repeat([0, 1, 2, 3], 10)
    probabilities = np.full((40, 4), 0.0)
    probabilities[np.arange(40), ranks] = 0.3
    probabilities[:, 0] += 0.7
    assert (ranks_of(probabilities, tune_limits(ranks, probabilities)) == ranks).all()
    certain = np.eye(4)[ranks]
    assert tune_limits(ranks, certain) == (0.5, 0.5, 0.5)


def slides(count: int = 60, *, noise: bool = False) -> LabelledSlides:
    predictors, ranks = examples(count)
    if noise:
        predictors = np.random.default_rng(1).normal(size=predictors.shape)
    groups = tuple(f"patient_{at // 5:03d}" for at in range(count))
    return LabelledSlides(
        names=tuple(map(str, range(count))), predictors=predictors, ranks=ranks, groups=groups, predictor_names=NAMES
    )


def test_nested_cross_validation_sees_no_patient_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    given_slides = slides()
    trained: list[set[str]] = []

    def spy(predictors: NDArray[Any], *arguments: Any, **options: Any) -> SlideClassifier:
        rows = {tuple(row) for row in predictors.tolist()}
        at = [number for number, row in enumerate(given_slides.predictors.tolist()) if tuple(row) in rows]
        trained.append({given_slides.groups[number] for number in at})
        assert len(at) == 5 * len(trained[-1])
        return fit(predictors, *arguments, **options)

    monkeypatch.setattr("staging.learned_labels.training.fit", spy)
    model = train_classifier(given_slides, Recipe(trees=5, folds=3))
    # three outer folds, each with three inner ones and its own forest, and the final forest
    assert len(trained) == 3 * (3 + 1) + 1
    assert len(trained[-1]) == 12
    nested = model.provenance["nested"]
    assert np.sum(nested["confusion"]) == 60
    assert nested["quadratic_kappa"] > 0.6
    assert len(nested["limits"]) == 3


def test_what_cannot_be_learned_does_not_score() -> None:
    nested = train_classifier(slides(noise=True), Recipe(trees=10, folds=4)).provenance["nested"]
    assert abs(nested["quadratic_kappa"]) < 0.4


def test_the_same_seed_trains_the_same() -> None:
    recipe = Recipe(trees=4, folds=2, kind="boosting")
    assert train_classifier(slides(), recipe) == train_classifier(slides(), recipe)


def test_too_few_patients_or_labels() -> None:
    with pytest.raises(CohortError, match="too few patients for 13 folds: 12"):
        train_classifier(slides(), Recipe(folds=13))
    one = slides().part(np.flatnonzero(slides().ranks == 2))
    with pytest.raises(CohortError, match="one label: micro"):
        train_classifier(one, Recipe())


def stored(folder: Path, name: str, size: int) -> Path:
    values = np.zeros((60, 60), dtype=np.float32)
    values[5 : 5 + size, 5 : 5 + 2 * size] = 0.9
    frame = Frame(x=0.0, y=0.0, downsample=64.0, shape=(60, 60), mpp=0.25)
    path = folder / f"{name}.zarr"
    write_heatmap(path, Heatmap(frame=frame, array=values, tissue=np.ones((60, 60), dtype=np.bool_)), {})
    return path


def test_slides_are_gathered_by_name(tmp_path: Path) -> None:
    paths = [stored(tmp_path, f"patient_00{at}_node_0", 3 * at) for at in (1, 2)]
    labels = {"PATIENT_001_node_0.tif": SlideLabel.ITC, "patient_002_node_0": SlideLabel.MICRO}
    found = gather(paths, labels)
    assert found.names == ("patient_001_node_0", "patient_002_node_0")
    assert found.ranks.tolist() == [1, 2]
    assert found.groups == ("patient_001", "patient_002")
    assert gather(paths, labels, split="centres").groups == ("CWZ", "CWZ")
    with pytest.raises(CohortError, match="no label for patient_002_node_0"):
        gather(paths, {"patient_001_node_0": SlideLabel.ITC})
    with pytest.raises(CohortError, match="no heatmap for x"):
        gather(paths, labels | {"x": SlideLabel.MACRO})
    with pytest.raises(CohortError, match="no centre in the name for x"):
        gather([*paths, stored(tmp_path, "x", 2)], labels | {"x": SlideLabel.MACRO}, split="centres")


def test_features_of_a_known_heatmap() -> None:
    values = np.zeros((10, 20), dtype=np.float32)
    values[2:4, 3:13] = 0.75
    tissue = np.ones((10, 20), dtype=np.bool_)
    tissue[:, 15:] = False
    heatmap = Heatmap(frame=Frame(x=0.0, y=0.0, downsample=64.0, shape=(10, 20), mpp=0.25), array=values, tissue=tissue)
    found = dict(zip(PREDICTOR_NAMES, slide_predictors(heatmap), strict=True))
    assert found["lesions"] == 1
    assert found["area_share_0.7"] == pytest.approx(20 / 150)
    assert found["probability_share_0.5"] == pytest.approx(15 / 150)
    assert found["area_share_0.8"] == 0
    assert found["lesion_1_area_um2"] == found["lesion_1_box_um2"] == 20 * 256
    assert found["lesion_1_aspect_ratio"] == pytest.approx(0.2)
    assert all(found[name] == 0 for name in PREDICTOR_NAMES if name.startswith("lesion_2"))


def test_every_predictor_has_its_own_words() -> None:
    words = [in_words(name) for name in PREDICTOR_NAMES]
    assert len(set(words)) == len(words)
    assert all("_" not in one and "um2" not in one for one in words)
    assert in_words("area_share_0.7") == "tissue of 0.7 or more: its share"
    assert in_words("lesion_2_longest_diameter_um") == "second lesion: longest diameter"


def test_the_picture_shows_longer_bars_for_more_important_features() -> None:
    picture = importance_picture(["a", "b", "c"], [0.1, 0.7, 0.2], title="importances", most=2)
    blue = (picture == (0, 114, 178)).all(axis=2)
    rows = np.flatnonzero(blue.any(axis=1))
    first, second = blue[rows[0]].sum(), blue[rows[-1]].sum()
    assert first == pytest.approx(420, abs=2)
    assert second == pytest.approx(420 * 2 / 7, abs=2)
