from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize
from sklearn.metrics import log_loss
from small_training import fit, patches

from wsi.cnn import learner
from wsi.cnn.architectures import NETWORKS
from wsi.cnn.augmentation import FULL
from wsi.cnn.calibration import balanced_loss, best_temperature, best_threshold, reliability
from wsi.cnn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi.cnn.curves import calibration_picture, learning_picture
from wsi.cnn.method import Method
from wsi.cnn.ranks import Ranks, is_first_process, joined
from wsi.cnn.schedule import pace
from wsi.cnn.training_log import TrainingLog
from wsi.errors import PathologyError
from wsi.patches.feeding import HeldPatches

EVEN = np.array([1.0, 1.0])


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 333])
def test_one_cycle_is_torchs(steps: int) -> None:
    optimiser = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps + 1, pct_start=0.2)
    for step in range(steps):
        group = optimiser.param_groups[0]
        found = pace("one-cycle", step, steps=steps, highest=3e-3, warm_up=0.5)
        assert found == (group["lr"], group["betas"][0])
        optimiser.step()
        schedule.step()


@given(st.integers(1, 300), st.floats(0, 0.9))
def test_cosine_rises_and_falls(steps: int, warm_up: float) -> None:
    rates = np.array([pace("cosine", step, steps=steps, highest=0.1, warm_up=warm_up)[0] for step in range(steps)])
    top = int(rates.argmax())
    assert (rates > 0).all()
    assert rates.max() <= 0.1 * (1 + 1e-12)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert top <= warm_up * steps + 1


def test_the_mean_of_weights_is_kept() -> None:
    start = fit(epochs=1, batch=40, judges=0).checkpoint
    last, mean = (
        fit(network=start, epochs=1, batch=40, judges=0, method=Method(average=average)).checkpoint.network.weights()
        for average in (0.0, 0.9)
    )
    begun = start.network.weights()
    for name in (name for name in begun if "running" not in name):
        # after one step 2/11 of the first weights are left
        expected = begun[name] * 2 / 11 + last[name] * 9 / 11
        np.testing.assert_allclose(mean[name], expected, rtol=1e-4, atol=1e-6)
    for name in (name for name in begun if "running" in name):
        np.testing.assert_array_equal(mean[name], last[name])


@pytest.mark.slow
def test_training_ends_early_when_it_grows_no_better() -> None:
    images, targets = patches()
    noise = (np.random.default_rng(1).random(len(targets)) < 0.5).astype(np.uint8)[:, None, None]
    source = HeldPatches(images, np.broadcast_to(noise, targets.shape).copy(), mpp=2.0)
    result = fit(source, epochs=40, patience=2)
    assert len(result.history) < 40
    assert result.best == len(result.history) - 3
    assert result.checkpoint.provenance["method"] == {"patience": "2"}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns(precision: Any) -> None:
    result = fit(epochs=6, method=Method(precision=precision))
    assert result.history[result.best].judges_auc is not None
    assert (result.history[result.best].judges_auc or 0) > 0.95
    assert all(array.dtype == np.float32 for array in result.checkpoint.network.weights().values())


@pytest.mark.slow
def test_half_precision_that_runs_over_leaves_the_batch_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "_FIRST_SCALE", 2.0**30)
    result = fit(epochs=8, method=Method(precision="fp16"))
    assert all(np.isfinite(array).all() for array in result.checkpoint.network.weights().values())
    assert (result.history[-1].judges_auc or 0) > 0.9


@pytest.mark.slow
def test_compiled_and_plain_are_alike() -> None:
    plain, compiled = fit(epochs=1), fit(epochs=1, workers=1, method=Method(compiler="eager"))
    assert compiled.history[0].loss == pytest.approx(plain.history[0].loss, rel=1e-4)


@pytest.mark.slow
def test_full_augmentation_learns() -> None:
    result = fit(epochs=12, method=Method(augmentation=FULL, schedule="cosine", average=0.9))
    assert (result.history[result.best].judges_auc or 0) > 0.95


@pytest.mark.slow
def test_a_residual_network_is_trained_from_a_start(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 436, 436, 3), dtype=np.uint8)
    targets = np.repeat(np.array([0, 1, 0, 1], np.uint8), 436 * 436).reshape(4, 436, 436)
    start = Checkpoint(network=NETWORKS["resnet18"].build(seed=1).eval(), mpp=0.5)
    source = HeldPatches(images, targets, mpp=0.5)
    result = fit(source, network=start, epochs=1, batch=4, judges=0, schedule="cosine")
    assert result.checkpoint.provenance["learning_rate"] == 1e-3
    save_checkpoint(tmp_path / "m", result.checkpoint)
    loaded = load_checkpoint(tmp_path / "m")
    before, after = start.network.weights(), loaded.network.weights()
    assert np.isfinite(result.history[0].loss)
    assert all((before[name] != after[name]).any() for name in ("conv1.weight", "fc.weight", "layer4.1.bn2.weight"))


@pytest.mark.parametrize(
    "odd",
    [{"schedule": "step"}, {"precision": "int8"}, {"average": 1.0}, {"patience": 0}, {"warm_up": 1.0}],
)
def test_absurd_methods_are_refused(odd: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"schedule|precision|warm-up|patience"):
        Method(**odd)


# --- calibration


def cells(seed: int, count: int = 400) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 2, count)
    return margins, rng.random(count) < 1 / (1 + np.exp(-margins))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 8), st.floats(0.2, 5))
def test_the_temperature_is_where_the_loss_is_least(seed: int, stretch: float, weight: float) -> None:
    margins, truth = cells(seed)
    weights = np.array([1.0, weight])
    found = best_temperature(truth, margins * stretch, weights)
    best = optimize.minimize_scalar(
        lambda warmth: balanced_loss(truth, margins * stretch / warmth, weights), bounds=(0.25, 10), method="bounded"
    )
    assert balanced_loss(truth, margins * stretch / found, weights) <= best.fun + 1e-6
    assert 0.25 <= found <= 10


def test_overconfidence_is_taken_back() -> None:
    margins, truth = cells(0, 20_000)
    assert best_temperature(truth, 3 * margins, EVEN) == pytest.approx(3, rel=0.1)
    assert best_temperature(np.array([True, False]), np.array([5.0, -5.0]), EVEN) == 0.25
    assert best_temperature(np.ones_like(truth), margins, EVEN) == 1.0
    assert best_temperature(np.zeros(0, np.bool_), np.zeros(0), EVEN) == 1.0


def test_the_loss_is_scikit_learns() -> None:
    margins, truth = cells(1)
    weights = np.array([0.7, 2.0])
    sample = np.where(truth, weights[1], weights[0])
    expected = log_loss(truth, 1 / (1 + np.exp(-margins)), sample_weight=sample)
    assert balanced_loss(truth, margins, weights) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_reliability_counts_every_cell_once(seed: int, bins: int) -> None:
    margins, truth = cells(seed, 60)
    table = reliability(truth, margins, EVEN, bins=bins)
    probability = 1 / (1 + np.exp(-margins))
    where = np.minimum(np.floor(probability * bins), bins - 1)
    expected = [
        (probability[where == number].mean(), truth[where == number].mean(), np.count_nonzero(where == number))
        for number in range(bins)
        if (where == number).any()
    ]
    np.testing.assert_allclose(table, expected)
    assert table[:, 2].sum() == 60


def test_a_trained_temperature_is_in_the_checkpoint_and_its_probabilities() -> None:
    plain, warm = fit(temperature=False), fit(temperature=True)
    temperature = warm.checkpoint.temperature
    assert temperature == best_temperature(plain.truth, plain.margins, plain.class_weights) != 1
    image = torch.from_numpy(patches()[0][:1]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(warm.checkpoint.network(image), plain.checkpoint.network(image) / temperature)
    assert 0.3 <= best_threshold(warm.truth, warm.margins) <= 0.8


# --- what is told


def test_pictures_show_curves() -> None:
    result = fit(method=Method(temperature=True))
    learning, calibration = learning_picture(result), calibration_picture(result)
    blue, orange = (0, 114, 178), (230, 159, 0)
    for picture in (learning, calibration):
        assert picture.dtype == np.uint8
        assert (picture == blue).all(axis=2).sum() > 50
        assert (picture == orange).all(axis=2).sum() > 50
    bare = fit(judges=0, epochs=1)
    assert not (calibration_picture(bare) == blue).all(axis=2).any()
    assert learning_picture(bare).shape == learning.shape


def test_the_log_holds_every_pass(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log.csv")
    result = fit(on_epoch=log.note)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    for row, epoch in zip(rows, result.history, strict=True):
        assert float(row["loss"]) == pytest.approx(epoch.loss, abs=1e-6)
        assert float(row["held_out_auc"]) == pytest.approx(epoch.judges_auc, abs=1e-6)
    log = TrainingLog(tmp_path / "bare.csv")
    fit(on_epoch=log.note, judges=0, epochs=1)
    assert (tmp_path / "bare.csv").read_text().splitlines()[1].endswith(",,")


def test_tensorboard_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(PathologyError, match="TensorBoard is not installed"):
        TrainingLog(tmp_path / "log.csv", tensorboard=tmp_path)


# --- processes


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined("cpu") as (ranks, device):
        assert (ranks, device.type) == (Ranks(), "cpu")
        assert ranks.is_first
        assert torch.equal(ranks.add(torch.ones(2)), torch.ones(2))
    assert is_first_process()
    monkeypatch.setenv("RANK", "3")
    assert not is_first_process()


@pytest.mark.parametrize(
    ("variables", "message"),
    [({"WORLD_SIZE": "many"}, "WORLD_SIZE is not a number"), ({"WORLD_SIZE": "2"}, "cannot find each other")],
)
def test_half_set_variables_are_named(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PathologyError, match=message), joined("cpu"):
        pass
