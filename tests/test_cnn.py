from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from wsi.cnn.augmentation import _softened, augment, cell_targets
from wsi.cnn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi.cnn.device import pick_device
from wsi.cnn.network import SMALL, Architecture, Layer, Network, weight_shapes
from wsi.cnn.training import Training, area_under_curve, train
from wsi.errors import CheckpointError, PathologyError
from wsi.stain import StainJitter

TINY = Architecture((Layer(8, 4, 2), Layer(12, 3, 2)))


def fresh(architecture: Architecture = TINY, **changes: Any) -> Checkpoint:
    network = Network(architecture, mean=(200.0, 150.0, 180.0), std=(30.0, 40.0, 35.0), seed=5)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
        elif name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    settled: dict[str, Any] = {"network": network.eval(), "mpp": 2.0, "provenance": {"seed": 5, "who": "é"}}
    return Checkpoint(**settled | changes)


# --- network


def test_small_has_the_promised_geometry() -> None:
    assert (SMALL.receptive_field_px, SMALL.stride_px, SMALL.margin_px, SMALL.centre_px) == (96, 8, 44, 47.5)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=4),
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(0, 100),
)
def test_a_cell_sees_its_receptive_field_and_nothing_else(
    shapes: list[tuple[int, int, int]], row: int, column: int, seed: int
) -> None:
    try:
        architecture = Architecture(
            tuple(Layer(4, kernel, min(stride, kernel), dilation) for kernel, stride, dilation in shapes)
        )
    except ValueError:
        return  # cells off the pixel grid
    field, stride = architecture.receptive_field_px, architecture.stride_px
    size = field + 6 * stride
    network = Network(architecture, seed=seed).eval().double()
    image = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 255
    image.requires_grad_()
    # a smooth stand-in for ReLU, so that no path is shut by chance
    for index, module in enumerate(network.body):
        if isinstance(module, torch.nn.ReLU):
            network.body[index] = torch.nn.Softplus()
    logits = network.head(network.body(image / 64 - 2))
    assert logits.shape == (1, 2, 7, 7) == (1, 2, architecture.cells(size), architecture.cells(size))
    (gradient,) = torch.autograd.grad(logits[0, :, row, column].abs().sum(), image)
    touched = np.argwhere(gradient[0].abs().sum(0).numpy() > 0)
    low, high = touched.min(0), touched.max(0)
    assert low.tolist() == [row * stride, column * stride]
    assert high.tolist() == [row * stride + field - 1, column * stride + field - 1]
    assert ((low + high) / 2 == np.array([row, column]) * stride + architecture.centre_px).all()


def test_changing_a_pixel_changes_exactly_the_cells_that_see_it() -> None:
    network = fresh(SMALL).network.folded()
    image = torch.randint(0, 256, (1, 3, 256, 256), generator=torch.Generator().manual_seed(0)).float()
    with torch.inference_mode():
        before = network(image)
        image[0, :, 140, 165] += 100
        changed = np.argwhere((network(image) != before).any(dim=1)[0].numpy())
    rows = [i for i in range(21) if i * 8 <= 140 < i * 8 + 96]
    columns = [j for j in range(21) if j * 8 <= 165 < j * 8 + 96]
    assert changed.min(0).tolist() == [rows[0], columns[0]]
    assert changed.max(0).tolist() == [rows[-1], columns[-1]]


def test_folding_keeps_the_function() -> None:
    network = fresh(SMALL).network
    image = torch.randint(0, 256, (2, 3, 136, 160), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        plain, folded = network(image), network.folded()(image.float())
    assert folded.shape == plain.shape == (2, 2, 6, 9)
    torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Architecture(()),
        lambda: Architecture((Layer(4, 3, 2),)),  # field 3, stride 2: cells off the grid
        lambda: Architecture((Layer(4, 3),), classes=1),
        lambda: Layer(0, 3),
        lambda: Layer(4, 2, 3),
        lambda: Layer(4, 3, dilation=0),
        lambda: Layer(4, 10**9),
        lambda: Layer(4.0, 3),  # type: ignore[arg-type]
        lambda: Architecture((Layer(1, 1),) * 100),
    ],
)
def test_absurd_architectures_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        build()


def test_new_networks_depend_on_their_seed_only() -> None:
    torch.manual_seed(1)
    first = Network(TINY, seed=3).weights()
    torch.manual_seed(2)
    second, other = Network(TINY, seed=3).weights(), Network(TINY, seed=4).weights()
    assert all((first[name] == second[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)
    assert {name: array.shape for name, array in first.items()} == weight_shapes(TINY)


def test_absent_devices_are_named() -> None:
    with pytest.raises(PathologyError, match="tpu"):
        pick_device("tpu")
    assert pick_device("cpu").type == "cpu"


# --- checkpoint


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "model.safetensors"
    checkpoint = fresh(threshold=0.42)
    save_checkpoint(path, checkpoint)
    loaded = load_checkpoint(path)
    assert path.read_bytes() == checkpoint.to_bytes() == loaded.to_bytes()
    assert loaded.digest == checkpoint.digest
    assert (loaded.mpp, loaded.threshold, loaded.class_names) == (2.0, 0.42, ("normal", "tumour"))
    assert (loaded.receptive_field_px, loaded.stride_px, loaded.cell_um, loaded.path) == (8, 4, 8.0, path)
    assert loaded.provenance == {"seed": 5, "who": "é"}
    assert (loaded.network.mean, loaded.network.std) == (checkpoint.network.mean, checkpoint.network.std)
    image = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded.network(image), checkpoint.network(image))
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", fresh())
    out = subprocess.run(["sha256sum", str(tmp_path / "m")], capture_output=True, check=True, text=True).stdout
    assert out.split()[0] == fresh().digest
    assert fresh(mpp=2.5).digest != fresh().digest


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"mpp": float("nan")}, "mpp"),
        ({"threshold": 1.0}, "threshold"),
        ({"class_names": ("a", "b")}, "tumour"),
        ({"class_names": ("normal", "tumour", "x")}, "classes"),
    ],
)
def test_inconsistent_checkpoints_cannot_be_built(odd: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fresh(**odd)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def test_pickles_are_named_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Bomb()}, tmp_path / "model.pt")
    torch.save(Bomb(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "ascii.pkl").write_bytes(pickle.dumps(Bomb(), protocol=0))
    expected = {"model.pt": "zip archive", "old.pth": "pickle", "model.pkl": "pickle", "ascii.pkl": "not a safetensors"}
    for name, words in expected.items():
        with pytest.raises(CheckpointError, match=words) as caught:
            load_checkpoint(tmp_path / name)
        assert name in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def raw(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a safetensors"),
        (b"abc", "not a safetensors"),
        (bytes(1000), "not a safetensors"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (raw(b"{}", length=2**62), "claims a header of 4611686018427387904"),
        (raw(b"{}", length=2**25), "claims a header"),
        (raw(b'{"a": 1', length=1000), "cut off"),
        (raw(b'{"a": 1 '), "no JSON"),
        (raw(b'{"a":' + b"[" * 200_000), "no JSON"),
        (raw(b"{}"), "another program"),
        (raw(b'{"__metadata__": 3}'), "another program"),
        (raw(b'{"__metadata__": {"sentinode": "[1, 2]"}}'), "not a sentinode checkpoint"),
        (raw(b'{"__metadata__": {"sentinode": "{nonsense"}}'), "no JSON"),
        (safetensors.numpy.save({"w": np.zeros(3, np.float32)}, {"format": "pt"}), "another program"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path)


def altered(change: Callable[[dict[str, np.ndarray], dict[str, Any]], object]) -> bytes:
    """A good checkpoint's file with tensors or metadata changed."""
    data = fresh().to_bytes()
    weights = safetensors.numpy.load(data)
    length = int.from_bytes(data[:8], "little")
    meta = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["sentinode"])
    change(weights, meta)
    return safetensors.numpy.save(weights, {"sentinode": json.dumps(meta)})


WEIGHT = "body.0.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, _m: w.pop(WEIGHT), "body.0.weight: is missing"),
        (lambda w, _m: w.update(extra=np.zeros(2, np.float32)), "extra: does not belong"),
        (lambda w, _m: w.update({WEIGHT: w[WEIGHT][:4]}), r"body.0.weight: is float32 \(4, 3, 4, 4\)"),
        (lambda w, _m: w.update({WEIGHT: w[WEIGHT].astype(np.float64)}), "is float64"),
        (lambda w, _m: w[WEIGHT].__setitem__((0, 0, 0, 0), np.nan), "NaN or infinity"),
        (lambda w, _m: w[WEIGHT].__setitem__((0, 0, 0, 0), -np.inf), "NaN or infinity"),
        (lambda w, _m: w["body.1.running_var"].fill(-1), "negative variance"),
        (lambda _w, m: m.update(version=2), "version 2"),
        (lambda _w, m: m.update(format="other"), "not a sentinode"),
        (lambda _w, m: m.pop("mpp"), "lacks or adds: mpp"),
        (lambda _w, m: m.update(surprise=1), "lacks or adds: surprise"),
        (lambda _w, m: m.update(mpp=float("nan")), "NaN is no number"),
        (lambda _w, m: m.update(mpp=-1), "positive mpp"),
        (lambda _w, m: m.update(mpp="2"), "no number"),
        (lambda _w, m: m.update(mpp=True), "no number"),
        (lambda _w, m: m.update(mpp=10**400), "contradicts"),
        (lambda _w, m: m.update(threshold=0), "threshold"),
        (lambda _w, m: m.update(stride_px=8), "receptive field and stride"),
        (lambda _w, m: m.update(mean=[1, 2]), "three numbers"),
        (lambda _w, m: m.update(std=[1, 2, 0]), "standard deviation"),
        (lambda _w, m: m.update(class_names=["normal", "other"]), "tumour"),
        (lambda _w, m: m.update(class_names=[1, 2]), "no text"),
        (lambda _w, m: m.update(class_names=None), "contradicts"),
        (lambda _w, m: m.update(provenance=3), "contradicts"),
        (lambda _w, m: m.update(architecture=[1]), "contradicts"),
        (lambda _w, m: m["architecture"].update(layers=[[8, 4, 2], [12, 3]]), "receptive field|architecture"),
        (lambda _w, m: m["architecture"].update(layers=[[4096, 31, 1]] * 64, classes=4096), "receptive field"),
        (lambda _w, m: m["architecture"].update(layers=[[10**9, 4, 2]]), "channels"),
        (lambda _w, m: m["architecture"].update(layers=[[1, 1, 1]] * 10_000), "layers"),
        (lambda _w, m: m["architecture"].update(classes=3), "head"),
    ],
)
def test_contradicting_checkpoints_are_refused(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray], dict[str, Any]], object], message: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(altered(change))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_an_unaltered_checkpoint_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(altered(lambda _w, _m: None))
    assert load_checkpoint(tmp_path / "m").digest == fresh().digest


def test_headers_whose_length_looks_like_a_pickle_load(tmp_path: Path) -> None:
    # 640, 896, 1152 and 1408 begin with the bytes of a pickle's protocol
    path = tmp_path / "m"
    lengths = set()
    for padding in range(0, 900, 8):
        checkpoint = fresh(provenance={"x": "y" * padding})
        path.write_bytes(checkpoint.to_bytes())
        lengths.add(int.from_bytes(path.read_bytes()[:8], "little"))
        assert load_checkpoint(path).provenance == {"x": "y" * padding}
    assert lengths & {1152, 1408}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2500), st.one_of(st.none(), st.integers(0, 255)))
def test_damaged_files_load_equal_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int | None
) -> None:
    data = bytearray(fresh().to_bytes())
    if value is None:
        del data[position:]
    else:
        data[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(data)
    try:
        loaded = load_checkpoint(path)
    except CheckpointError:
        return
    assert all(np.isfinite(array).all() for array in loaded.network.weights().values())


def test_nan_weights_are_not_saved(tmp_path: Path) -> None:
    checkpoint = fresh()
    with torch.no_grad():
        checkpoint.network.head.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"head\.weight: holds NaN"):
        save_checkpoint(tmp_path / "m", checkpoint)
    assert not (tmp_path / "m").exists()


# --- training


def test_blur_is_the_binomial_one_with_a_repeated_border() -> None:
    pixels = np.random.default_rng(0).random((2, 9, 7, 3)).astype(np.float32)
    found = _softened(torch.from_numpy(pixels).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    expected = ndimage.correlate1d(pixels, [0.25, 0.5, 0.25], axis=1, mode="nearest")
    expected = ndimage.correlate1d(expected, [0.25, 0.5, 0.25], axis=2, mode="nearest")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_images_and_targets_are_turned_together() -> None:
    targets = (np.random.default_rng(0).random((16, 4, 4)) < 0.5).repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    images = np.where(targets[..., None] == 1, 90, 220).astype(np.uint8).repeat(3, axis=3)
    still = StainJitter(sigma=0, strength=0, hue=0, bias=0, exposure=0)
    shown, cells = augment(images, targets, TINY, still, np.random.default_rng(1))
    centres = shown[:, 0, 3:-3:4, 3:-3:4].numpy()
    assert shown.shape == (16, 3, 32, 32)
    assert centres[..., : cells.shape[2]].shape == cells.shape
    assert (centres[cells == 1] < 155).all()
    assert (centres[cells == 0] > 155).all()
    assert (cells != cell_targets(targets, TINY)).any()


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


def fit(**changes: Any) -> Training:
    images, targets = textures(96, 0)
    settled: dict[str, Any] = {"mpp": 2.0, "architecture": TINY, "epochs": 6, "batch": 8, "device": "cpu"}
    return train(images, targets, groups=np.arange(96) % 12, **settled | changes)


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
    assert best.validation_auc is not None
    assert best.validation_auc > 0.97
    assert best.validation_loss == min(epoch.validation_loss or 9 for epoch in trained.history)
    assert trained.checkpoint.threshold == 0.5


def test_training_repeats_bit_for_bit(trained: Training) -> None:
    again = fit(workers=3)
    assert again.checkpoint.digest == trained.checkpoint.digest
    assert again.history == trained.history
    assert fit(seed=1, epochs=1).checkpoint.digest != fit(epochs=1).checkpoint.digest


def test_training_goes_on_from_a_checkpoint(trained: Training) -> None:
    further = fit(start=trained.checkpoint, epochs=1, learning_rate=1e-5)
    assert further.history[0].loss < 0.5 * trained.history[0].loss
    assert further.checkpoint.provenance["start"] == trained.checkpoint.digest
    assert further.checkpoint.network.mean == trained.checkpoint.network.mean
    with pytest.raises(ValueError, match="another architecture"):
        fit(start=trained.checkpoint, mpp=1.0)


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_patients_are_held_out_whole(trained: Training) -> None:
    record = trained.checkpoint.provenance
    assert trained.held_out == tuple(record["held_out"])
    assert 1 <= len(trained.held_out) < 12
    json.dumps(record, allow_nan=False)


def test_every_epoch_is_told() -> None:
    told: list[str] = []
    result = fit(epochs=2, on_epoch=lambda epoch: told.append(str(epoch)))
    assert told == [str(epoch) for epoch in result.history]
    assert told[1].startswith("epoch 2/2: loss 0.")
    assert "held-out AUC" in told[1]


def test_without_held_out_patients_the_last_epoch_is_kept() -> None:
    result = fit(held_out=0, epochs=2)
    assert result.best == 1
    assert result.held_out == ()
    assert result.history[0].validation_loss is None


def test_what_is_not_looked_at_counts_in_no_loss() -> None:
    images, targets = textures(40, 3)
    targets[:, :, 24:] = 255
    assert (cell_targets(targets, TINY)[:, :, 6:] == 255).all()
    result = train(images, targets, mpp=2, architecture=TINY, epochs=8, batch=8, device="cpu")
    assert result.history[-1].validation_auc is not None
    assert result.history[-1].validation_auc > 0.95
    # a batch in which nothing is looked at is no reason to fail
    targets[5:] = 255
    train(images, targets, mpp=2, architecture=TINY, epochs=1, batch=2, held_out=0, device="cpu")


def test_a_calibrated_threshold_lies_within_its_bounds() -> None:
    assert 0.3 <= fit(epochs=1, calibrate=True).checkpoint.threshold <= 0.8


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


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=60))
def test_area_under_curve_is_scikit_learns(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    found = area_under_curve(scores, truth)
    if truth.all() or not truth.any():
        assert found is None
    else:
        assert found == pytest.approx(roc_auc_score(truth, scores))


IMAGES, TARGETS = textures(8, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES.astype(np.float32)}, "uint8"),
        ({"images": IMAGES[:, :40]}, "side"),
        ({"targets": TARGETS[:, :40]}, "targets are uint8"),
        ({"targets": TARGETS * 7}, r"got \[7\]"),
        ({"targets": TARGETS * 0}, "no tumour cell"),
        ({"targets": np.maximum(TARGETS, 1)}, "no normal cell"),
        ({"groups": np.arange(3)}, "groups"),
        ({"epochs": 0}, "epoch"),
        ({"batch": 0}, "epoch"),
        ({"held_out": 1.0}, "held-out"),
        ({"architecture": SMALL}, "smaller than the receptive field"),
        ({"architecture": Architecture(TINY.layers, classes=3)}, "two classes"),
    ],
)
def test_training_refuses_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    settled: dict[str, Any] = {"images": IMAGES, "targets": TARGETS, "mpp": 2.0, "architecture": TINY, "device": "cpu"}
    with pytest.raises(ValueError, match=message):
        train(**settled | changes)


def test_only_the_network_loads_torch() -> None:
    code = "import sys, wsi, wsi.tiles, wsi.stain; sys.exit('torch' in sys.modules or 'dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
