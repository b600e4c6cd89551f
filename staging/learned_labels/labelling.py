"""A slide classifier applied to heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from staging.learned_labels.predictors import FEATURE_NAMES, slide_features
from staging.learned_labels.trees import SlideClassifier
from staging.lesions.labels import SlideLabel
from staging.lesions.tables import csv_text
from wsi.errors import ArtefactError, CheckpointError
from wsi.heatmap_store import read_heatmap


def find_heatmaps(folder: Path) -> list[Path]:
    """The heatmaps of a folder, by name.

    Raises:
        ArtefactError: there are none.
    """
    found = sorted(folder.glob("*.zarr"))
    if not found:
        raise ArtefactError(folder, "holds no heatmaps", mend="name the folder heatmaps of a run")
    return found


def learned_label_table(classifier: SlideClassifier, heatmaps: Sequence[Path], *, model: Path | None = None) -> str:
    """One row per slide: its label and the probability of each; stage takes both.

    Raises:
        CheckpointError: the classifier was trained on other features than this version computes.
        ArtefactError, ResolutionError: a heatmap cannot be used.
    """
    if classifier.features != FEATURE_NAMES:
        raise CheckpointError(model, "was trained on other features", mend="train it again with this version")
    features = np.array([slide_features(read_heatmap(path)) for path in heatmaps])
    shares = classifier.predict(features)
    rows = (
        (path.stem, label.value, *(f"{share:.6f}" for share in row))
        for path, label, row in zip(heatmaps, classifier.label(shares), shares.tolist(), strict=True)
    )
    return csv_text(("slide", "label", *(label.value for label in SlideLabel)), rows)
