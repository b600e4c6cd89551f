"""A learned slide label: trees over the predictors of a heatmap, stored as JSON and read without scikit-learn.

A slide gets the worst label for which the probability of that label or a worse one reaches its limit; the limits
maximise the quadratic kappa on predictions for slides that the trees did not see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from staging.lesions.labels import SlideLabel
from wsi.errors import CheckpointError
from wsi.inputs import read_json
from wsi.store import atomic_text, json_text

Kind = Literal["forest", "boosting"]
_FORMAT = "sentinode slide classifier 1"
_LEAF = -1

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One decision tree; node 0 is its root.

    Attributes:
        left, right: number of the child on either side; -1 for leaves.
        predictor: index of the predictor that a node tests; values up to the threshold go left.
        threshold: of that predictor, as float32.
        value: of each node: a share of every class (forest), or one number (boosting).
        target: the class whose score the tree adds to (boosting); None in a forest.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    predictor: tuple[int, ...]
    threshold: tuple[float, ...]
    value: tuple[tuple[float, ...], ...]
    target: int | None = None

    def __post_init__(self) -> None:
        size = len(self.left)
        parts: tuple[tuple[Any, ...], ...] = (self.right, self.predictor, self.threshold, self.value)
        if size == 0 or any(len(part) != size for part in parts):
            raise ValueError("a tree has one entry per node")
        # children come after their parents, so that every path ends
        for number, (left, right) in enumerate(zip(self.left, self.right, strict=True)):
            if (left == _LEAF) != (right == _LEAF) or (
                left != _LEAF and not (number < left < size and number < right < size)
            ):
                raise ValueError(f"node {number} of a tree has impossible children")

    def values(self, predictors: NDArray[np.float32]) -> Floats:
        """Return the leaf's value for each row of predictors: float64 (n, classes or 1)."""
        left, right, predictor = np.array(self.left), np.array(self.right), np.array(self.predictor)
        threshold = np.array(self.threshold)
        at = np.zeros(len(predictors), dtype=np.int64)
        while (inner := np.flatnonzero(left[at] != _LEAF)).size:
            node = at[inner]
            is_left = predictors[inner, predictor[node]] <= threshold[node]
            at[inner] = np.where(is_left, left[node], right[node])
        return np.array(self.value)[at]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideClassifier:
    """Trees that turn a slide's predictors into the probability of each label.

    Attributes:
        kind: of the trees.
        predictors: names of the numbers that predict takes, in order.
        labels: the classes of the training slides, in order.
        trees: of all classes.
        base: score of each class before any tree (boosting); one number for two classes.
        rate: factor of each tree's value (boosting).
        limits: for itc, micro and macro: the probability of that label or a worse one from which it is given.
        importances: of the predictors, summing to 1.
        provenance: what it was made from, and how well it did on unseen slides.
    """

    kind: Kind
    predictors: tuple[str, ...]
    labels: tuple[SlideLabel, ...]
    trees: tuple[Tree, ...]
    base: tuple[float, ...] = ()
    rate: float = 1.0
    limits: tuple[float, ...] = (0.5, 0.5, 0.5)
    importances: tuple[float, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, predictors: Floats) -> Floats:
        """Predict the probability of each SlideLabel: float64 (n, 4), rows sum to 1; a label never trained on gets 0.

        Args:
            predictors: float64 (n, len(self.predictors)).

        Raises:
            ValueError: another number of predictors.
        """
        if predictors.ndim != 2 or predictors.shape[1] != len(self.predictors):
            raise ValueError(f"predictors must be (n, {len(self.predictors)}), got {predictors.shape}")
        narrow = predictors.astype(np.float32)  # as scikit-learn compares them
        shares = self._forest(narrow) if self.kind == "forest" else self._boosted(narrow)
        result = np.zeros((len(predictors), len(SlideLabel)))
        result[:, [label.rank for label in self.labels]] = shares
        return result

    def label(self, probabilities: Floats) -> list[SlideLabel]:
        """Return the label of each row of predict's result, by the limits."""
        return [list(SlideLabel)[rank] for rank in ranks_of(probabilities, self.limits)]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which from_json makes the same classifier."""
        record = asdict(self)
        record["features"] = record.pop("predictors")
        for tree in record["trees"]:
            tree["feature"] = tree.pop("predictor")
        return {**record, "labels": [label.value for label in self.labels], "format": _FORMAT}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SlideClassifier:
        """Read what to_json wrote.

        Raises:
            ValueError, KeyError, TypeError: the record is of another form.
        """
        if record["format"] != _FORMAT or record["kind"] not in ("forest", "boosting"):
            raise ValueError("is of another format")
        trees = tuple(_tree(one) for one in record["trees"])
        model = cls(
            kind=record["kind"],
            predictors=tuple(record["features"]),
            labels=tuple(SlideLabel.parse(text) for text in record["labels"]),
            trees=trees,
            base=tuple(record["base"]),
            rate=float(record["rate"]),
            limits=tuple(record["limits"]),
            importances=tuple(record["importances"]),
            provenance=dict(record["provenance"]),
        )
        if not trees or len(model.limits) != len(SlideLabel) - 1:
            raise ValueError("lacks trees or limits")
        if not all(0 <= number < len(model.predictors) for tree in trees for number in tree.predictor):
            raise ValueError("uses predictors that it does not name")
        width = len(model.labels) if model.kind == "forest" else 1
        if any(len(value) != width for tree in trees for value in tree.value):
            raise ValueError("has leaves of another size")
        if not np.isfinite(model.predict(np.zeros((1, len(model.predictors))))).all():
            raise ValueError("gives no probabilities")
        return model

    def _forest(self, predictors: NDArray[np.float32]) -> Floats:
        total = np.zeros((len(predictors), len(self.labels)))
        for tree in self.trees:
            total += tree.values(predictors)
        return total / len(self.trees)

    def _boosted(self, predictors: NDArray[np.float32]) -> Floats:
        scores = np.tile(np.array(self.base), (len(predictors), 1))
        for tree in self.trees:
            scores[:, tree.target or 0] += self.rate * tree.values(predictors)[:, 0]
        if scores.shape[1] == 1:
            worse = 1 / (1 + np.exp(-scores[:, 0]))
            return np.stack([1 - worse, worse], axis=1)
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: Floats = powers / powers.sum(axis=1, keepdims=True)
        return shares


def _tree(record: Mapping[str, Any]) -> Tree:
    value = tuple(tuple(float(share) for share in node) for node in record["value"])
    left, right, predictor, threshold = (tuple(record[name]) for name in ("left", "right", "feature", "threshold"))
    return Tree(left=left, right=right, predictor=predictor, threshold=threshold, value=value, target=record["target"])


def ranks_of(probabilities: Floats, limits: tuple[float, ...]) -> Whole:
    """Return the rank of the worst label whose probability, with those of worse ones, reaches its limit: int64 (n,)."""
    at_least = np.cumsum(probabilities[:, ::-1], axis=1)[:, ::-1][:, 1:]
    reached = at_least >= np.array(limits)
    worst = reached.shape[1] - np.argmax(reached[:, ::-1], axis=1)
    return np.where(reached.any(axis=1), worst, 0)


def fit(
    predictors: Floats, ranks: Whole, *, names: tuple[str, ...], kind: Kind = "forest", trees: int = 300, seed: int = 0
) -> SlideClassifier:
    """Grow trees on labelled slides; the limits stay at one half.

    Args:
        predictors: float64 (n, predictors).
        ranks: int64 (n,), of their SlideLabels.
        names: of the predictors.
        kind: "forest" (L. Breiman, Machine Learning 45, 2001) with classes weighted by their rarity, or "boosting" (J.
            H. Friedman, Annals of Statistics 29, 2001).
        trees: number of trees; with boosting per class.
        seed: the same seed grows the same trees.

    Raises:
        ValueError: fewer than two classes.
    """
    if len(np.unique(ranks)) < 2:
        raise ValueError("a classifier needs slides of at least two labels")
    labels = tuple(list(SlideLabel)[rank] for rank in np.unique(ranks))
    if kind == "forest":
        from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415  (slow import)

        grown = RandomForestClassifier(n_estimators=trees, class_weight="balanced", random_state=seed)
        grown.fit(predictors, ranks)
        found = tuple(_from_sklearn(one.tree_) for one in grown.estimators_)
        return SlideClassifier(
            kind=kind,
            predictors=names,
            labels=labels,
            trees=found,
            importances=_importances(grown.feature_importances_),
        )
    from sklearn.ensemble import GradientBoostingClassifier  # noqa: PLC0415  (slow import)

    boosted = GradientBoostingClassifier(n_estimators=trees, max_depth=2, subsample=0.7, random_state=seed)
    boosted.fit(predictors, ranks)
    found = tuple(
        _from_sklearn(one.tree_, target=target) for trees in boosted.estimators_ for target, one in enumerate(trees)
    )
    outputs = boosted.estimators_.shape[1]
    rate = float(boosted.learning_rate)
    added = np.zeros(outputs)
    for tree in found:
        added[tree.target or 0] += rate * tree.values(predictors[:1].astype(np.float32))[0, 0]
    base = np.ravel(boosted.decision_function(predictors[:1])) - added
    return SlideClassifier(
        kind=kind,
        predictors=names,
        labels=labels,
        trees=found,
        base=tuple(float(one) for one in base),
        rate=rate,
        importances=_importances(boosted.feature_importances_),
    )


def _importances(values: Floats) -> tuple[float, ...]:
    return tuple(float(one) for one in values)


def _from_sklearn(tree: Any, *, target: int | None = None) -> Tree:  # noqa: ANN401  (sklearn has no types)
    values = tree.value[:, 0, :]
    if target is None:
        values = values / values.sum(axis=1, keepdims=True)
    is_leaf = tree.children_left == _LEAF
    return Tree(
        left=tuple(tree.children_left.tolist()),
        right=tuple(tree.children_right.tolist()),
        predictor=tuple(np.where(is_leaf, 0, tree.feature).tolist()),
        threshold=tuple(np.where(is_leaf, 0.0, tree.threshold).tolist()),
        value=tuple(tuple(node) for node in values.tolist()),
        target=target,
    )


def write_classifier(path: Path, classifier: SlideClassifier) -> None:
    """Write a classifier as JSON.

    Raises:
        StorageError: the file cannot be written.
    """
    atomic_text(path, json_text(classifier.to_json()))


def read_classifier(path: Path) -> SlideClassifier:
    """Read what write_classifier wrote.

    Raises:
        CheckpointError: it is not such a file.
    """
    try:
        return SlideClassifier.from_json(read_json(path))
    except OSError as error:
        raise CheckpointError(
            path, f"cannot be read: {error.strerror or error}", mend="name a model of sentinode label --train"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            path, f"is not a slide classifier: {error}", mend="make one with sentinode label --train"
        ) from error
