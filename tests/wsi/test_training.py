from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import small_training
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from small_training import TINY

from wsi.cnn.calibration import area_under_curve
from wsi.cnn.cells import cell_targets
from wsi.cnn.network import SMALL, Architecture
from wsi.cnn.training import Training
from wsi.cnn.training_data import UnfitPatchesError
from wsi.patches.feeding import HeldPatches


def textures(count: int, seed: int, side: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Fine grain (normal) with a half plane of coarse grain (tumour) of the same mean colour, in changing stains."""
    rng = np.random.default_rng(seed)
    fine = rng.random((count, side, side))
    coarse = np.kron(rng.random((count, side // 4, side // 4)), np.ones((4, 4)))
    edge = rng.integers(-side, 2 * side, count)[:, None, None]
    is_tumour = np.broadcast_to(np.arange(side)[None, :, None] > edge, (count, side, side))
    dark = np.where(is_tumour, coarse, fine)[..., None] * (90, 110, 60)
    stain = rng.uniform(-15, 15, (count, 1, 1, 3))
    return np.clip(235 - dark + stain, 0, 255).astype(np.uint8), is_tumour.astype(np.uint8)


def fit(mpp: float = 2.0, **changes: Any) -> Training:
    images, targets = textures(96, 0)
    source = HeldPatches(images, targets, mpp=mpp, patients=np.arange(96) % 12)
    return small_training.fit(source, **{"epochs": 6, "batch": 8} | changes)


@pytest.fixture(scope="module")
def trained() -> Training:
    return fit()


def test_training_learns_a_texture_that_colour_does_not_tell(trained: Training) -> None:
    images, targets = textures(30, 99)
    with torch.inference_mode():
        logits = trained.checkpoint.network(torch.from_numpy(images).permute(0, 3, 1, 2))
    truth = cell_targets(targets, TINY)
    looked_at = truth != 255
    margin = (logits[:, 1] - logits[:, 0]).numpy()[looked_at]
    assert roc_auc_score(truth[looked_at], margin) > 0.97
    best = trained.history[trained.best]
    assert best.judges_auc is not None
    assert best.judges_auc > 0.97
    assert best.judges_loss == min(epoch.judges_loss or 9 for epoch in trained.history)
    assert trained.checkpoint.threshold == 0.5


@pytest.mark.slow
def test_training_repeats_bit_for_bit(trained: Training) -> None:
    again = fit(workers=3)
    assert again.checkpoint.digest == trained.checkpoint.digest
    assert again.history == trained.history
    assert fit(seed=1, epochs=1).checkpoint.digest != fit(epochs=1).checkpoint.digest


def test_training_goes_on_from_a_checkpoint(trained: Training) -> None:
    further = fit(network=trained.checkpoint, epochs=1, learning_rate=1e-5)
    assert further.history[0].loss < 0.5 * trained.history[0].loss
    assert further.checkpoint.provenance["start"] == trained.checkpoint.digest
    assert further.judges == trained.judges
    assert trained.begun_loss is None
    assert further.begun_loss == pytest.approx(trained.history[trained.best].judges_loss, rel=1e-4)
    assert further.checkpoint.network.mean == trained.checkpoint.network.mean
    with pytest.raises(ValueError, match=r"expects 2.0 um/px, the patches have 1.0"):
        fit(network=trained.checkpoint, mpp=1.0)


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_patients_judge_whole(trained: Training) -> None:
    record = trained.checkpoint.provenance
    assert trained.judges == tuple(record["held_out"])
    assert 1 <= len(trained.judges) < 12
    json.dumps(record, allow_nan=False)
    named = fit(judges={"3", "1"}, epochs=1)
    assert named.judges == ("1", "3")
    of_them = np.isin(np.arange(96) % 12, (1, 3))
    cells = cell_targets(textures(96, 0)[1][of_them], TINY)
    np.testing.assert_array_equal(named.truth, cells[cells != 255] == 1)


def test_every_epoch_is_told() -> None:
    told: list[str] = []
    result = fit(epochs=2, on_epoch=lambda epoch: told.append(str(epoch)))
    assert told == [str(epoch) for epoch in result.history]
    assert told[1].startswith("epoch 2/2: loss 0.")
    assert "held-out AUC" in told[1]


@pytest.mark.parametrize("nobody", [0, ()])
def test_without_judges_the_last_epoch_is_kept(nobody: Any) -> None:
    result = fit(judges=nobody, epochs=2)
    assert result.best == 1
    assert result.judges == ()
    assert result.history[0].judges_loss is None


@pytest.mark.slow
def test_what_is_not_looked_at_counts_in_no_loss() -> None:
    images, targets = textures(40, 3)
    targets[:, :, 24:] = 255
    assert (cell_targets(targets, TINY)[:, :, 6:] == 255).all()
    result = small_training.fit(HeldPatches(images, targets, mpp=2.0), epochs=8, batch=8)
    assert result.history[-1].judges_auc is not None
    assert result.history[-1].judges_auc > 0.95
    # a batch in which nothing is looked at is no reason to fail
    targets[5:] = 255
    small_training.fit(HeldPatches(images, targets, mpp=2.0), epochs=1, batch=2, judges=0)


def test_a_calibrated_threshold_lies_within_its_bounds() -> None:
    assert 0.3 <= fit(epochs=1, threshold=True).checkpoint.threshold <= 0.8


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 40), st.integers(0, 100))
def test_cells_take_the_label_around_their_centre(side: int, seed: int) -> None:
    targets = np.random.default_rng(seed).choice([0, 1, 255], (2, side, side), p=[0.6, 0.3, 0.1]).astype(np.uint8)
    found = cell_targets(targets, TINY)
    count = TINY.cells(side)
    assert found.shape == (2, count, count)
    for i in range(count):
        for j in range(count):
            row, column = i * 4 + 3, j * 4 + 3  # receptive field 8: centre at 3.5
            around = targets[0, row : row + 2, column : column + 2]
            assert found[0, i, j] == (around[0, 0] if (around == around[0, 0]).all() else 255)


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=60))
def test_area_under_curve_is_scikit_learns(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    found = area_under_curve(truth, scores)
    if truth.all() or not truth.any():
        assert found is None
    else:
        assert found == pytest.approx(roc_auc_score(truth, scores))


IMAGES, TARGETS = textures(8, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES[:, :5, :5], "targets": TARGETS[:, :5, :5]}, "patches of 5 px are smaller"),
        ({"targets": TARGETS * 7}, r"got \[7\]"),
        ({"targets": TARGETS * 0}, "no tumour cell"),
        ({"targets": np.maximum(TARGETS, 1)}, "no normal cell"),
        ({"network": SMALL}, "smaller than the receptive field"),
    ],
)
def test_patches_that_nothing_can_be_learnt_from_have_an_error_of_their_own(
    changes: dict[str, Any], message: str
) -> None:
    images, targets = (changes.pop(name, array) for name, array in (("images", IMAGES), ("targets", TARGETS)))
    with pytest.raises(UnfitPatchesError, match=message):
        small_training.fit(HeldPatches(images, targets, mpp=2.0), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES.astype(np.float32)}, "uint8"),
        ({"images": IMAGES[:, :40]}, "side"),
        ({"targets": TARGETS[:, :40]}, "targets must be uint8"),
        ({"patients": np.arange(3)}, "patients need shape"),
        ({"judges": ["99"]}, "99 is named as a judge but has no patch"),
        ({"epochs": 0}, "epoch"),
        ({"batch": 0}, "epoch"),
        ({"judges": 1.0}, "held-out"),
        ({"network": Architecture(TINY.layers, classes=3)}, "two classes"),
    ],
)
def test_training_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    given = {"images": IMAGES, "targets": TARGETS, "patients": None}
    of_patches: dict[str, Any] = {name: changes.get(name, array) for name, array in given.items()}
    others = {name: change for name, change in changes.items() if name not in of_patches}
    with pytest.raises(ValueError, match=message) as caught:
        small_training.fit(HeldPatches(**of_patches, mpp=2.0), **others)
    assert not isinstance(caught.value, UnfitPatchesError)
