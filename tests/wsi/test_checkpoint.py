from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_checkpoint import TINY, fresh

from wsi.cnn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi.cnn.network import Network
from wsi.errors import CheckpointError


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
        (raw(b'{"a": 1 '), "not JSON"),
        (raw(b'{"a":' + b"[" * 200_000), "not JSON"),
        (raw(b"{}"), "another program"),
        (raw(b'{"__metadata__": 3}'), "another program"),
        (raw(b'{"__metadata__": {"sentinode": "[1, 2]"}}'), "not a sentinode checkpoint"),
        (raw(b'{"__metadata__": {"sentinode": "{nonsense"}}'), "not JSON"),
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
    del meta["sha256"]  # as files of 0.1.0, whose values have to be refused for what they are
    change(weights, meta)
    return safetensors.numpy.save(weights, {"sentinode": json.dumps(meta)})


WEIGHT = "body.0.weight"


def residual(**changes: Any) -> dict[str, Any]:
    return {"network": "resnet18", "classes": 2, "pooled": 1, "stride_px": 32} | changes


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
        (lambda _w, m: m.update(version=3), "version 3"),
        (lambda _w, m: m.update(version=True), "version True"),
        (lambda _w, m: m.update(version=2), "missing or extra fields: temperature"),
        (lambda _w, m: m.update(version=2, temperature=0), "temperature must be positive"),
        (lambda _w, m: m.update(version=2, temperature="1"), "is not a number"),
        (
            lambda _w, m: m.update(architecture={"network": "vgg", "classes": 2, "pooled": 1, "stride_px": 32}),
            "residual",
        ),
        (
            lambda _w, m: m.update(architecture={"network": "resnet18", "classes": 2, "pooled": 1, "stride_px": 8}),
            "receptive field and stride",
        ),
        (lambda _w, m: m.update(format="other"), "not a sentinode"),
        (lambda _w, m: m.pop("mpp"), "missing or extra fields: mpp"),
        (lambda _w, m: m.update(surprise=1), "missing or extra fields: surprise"),
        (lambda _w, m: m.update(mpp=float("nan")), "NaN is not a number"),
        (lambda _w, m: m.update(mpp=-1), "positive mpp"),
        (lambda _w, m: m.update(mpp="2"), "is not a number"),
        (lambda _w, m: m.update(mpp=True), "is not a number"),
        (lambda _w, m: m.update(mpp=10**400), "contradicts"),
        (lambda _w, m: m.update(mpp=1e308), "below 1000"),
        (lambda _w, m: m.update(sha256=None), "sha256 is no text"),
        (lambda _w, m: m.update(threshold=0), "threshold"),
        (lambda _w, m: m.update(stride_px=8), "receptive field and stride"),
        (lambda _w, m: m.update(mean=[1, 2]), "three numbers"),
        (lambda _w, m: m.update(std=[1, 2, 0]), "standard deviation"),
        (lambda _w, m: m.update(class_names=["normal", "other"]), "tumour"),
        (lambda _w, m: m.update(class_names=[1, 2]), "is not text"),
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        checkpoint.network.get_parameter("head.weight").fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"head\.weight: holds NaN"):
        save_checkpoint(tmp_path / "m", checkpoint)
    assert not (tmp_path / "m").exists()


def test_temperature_and_residual_networks_make_a_second_version(tmp_path: Path) -> None:
    def version_of(checkpoint: Checkpoint) -> int:
        data = checkpoint.to_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return int(json.loads(header["__metadata__"]["sentinode"])["version"])

    plain, warm = fresh(), fresh(network=Network(TINY, temperature=1.7, seed=5).eval())
    assert (version_of(plain), version_of(warm)) == (1, 2)
    save_checkpoint(tmp_path / "m", warm)
    loaded = load_checkpoint(tmp_path / "m")
    assert loaded.temperature == 1.7
    assert loaded.to_bytes() == warm.to_bytes()
    image = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    with torch.inference_mode():
        cold = Network(TINY, seed=5).eval()(image)
        torch.testing.assert_close(loaded.network(image), cold / 1.7)
        torch.testing.assert_close(loaded.network.folded()(image.float()), cold / 1.7, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_passes(
    at: float, bit: int, tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Checkpoint]
) -> None:
    path = tmp_path_factory.mktemp("flipped") / "m.safetensors"
    data = bytearray(make_checkpoint(mpp=2.0).to_bytes())
    data[int(at * len(data))] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
