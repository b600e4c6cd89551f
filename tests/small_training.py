"""A training that ends in a moment."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from wsi.cnn.augmentation import FULL
from wsi.cnn.method import Method
from wsi.cnn.network import Architecture, Layer
from wsi.cnn.training import Training, train
from wsi.patches.feeding import HeldPatches, TrainingPatches

TINY = Architecture((Layer(8, 4, 2), Layer(12, 3, 2)))


EVERYTHING = Method(
    schedule="cosine",
    augmentation=FULL,
    average=0.9,
    patience=3,
    temperature=True,
)


FP16 = Method(precision="fp16")


def patches(count: int = 40, side: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    fine = rng.random((count, side, side))
    coarse = np.kron(rng.random((count, side // 4, side // 4)), np.ones((4, 4)))
    is_tumour = np.broadcast_to((np.arange(count) % 2 == 1)[:, None, None], fine.shape)
    dark = np.where(is_tumour, coarse, fine)[..., None] * (90, 110, 60)
    return (235 - dark).astype(np.uint8), is_tumour.astype(np.uint8)


def fit(source: TrainingPatches | None = None, method: Method | None = None, **changes: Any) -> Training:
    """Train on some patches, or forty of ten patients; changes of the method, or of train's other arguments."""
    names = {field.name for field in fields(Method)}
    of_method = {name: value for name, value in changes.items() if name in names}
    others = {name: value for name, value in changes.items() if name not in names}
    settled: dict[str, Any] = {"network": TINY, "device": "cpu"}
    if source is None:
        images, targets = patches()
        source = HeldPatches(images, targets, mpp=2.0, patients=np.arange(40) % 10)
    method = replace(method or Method(), **{"epochs": 3, "batch": 10} | of_method)
    return train(source, method, **settled | others)


METHODS = {"plain": Method(), "everything": EVERYTHING, "fp16": FP16}
