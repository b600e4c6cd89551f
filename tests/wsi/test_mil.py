from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from wsi.cnn.checkpoint import save_checkpoint
from wsi.cnn.encoders import mil, mil_training
from wsi.cnn.encoders.attention import AttentionMap, draw_attention, read_attention, save_attention_png, write_attention
from wsi.cnn.encoders.mil import GatedAttention, HeadShape, MilHead, load_head, save_head
from wsi.cnn.encoders.mil_training import Bag, MilResult, MilTraining, patient_folds, train_head
from wsi.errors import ArtefactError, CheckpointError, PathologyError
from wsi.geometry import Frame
from wsi.heatmap_store import read_heatmap, write_heatmap
from wsi.raster import Heatmap

pytestmark = pytest.mark.slow  # its fixtures take seconds

WIDTH, KEYS = 12, 3
_CPUS = ("cpu", "cpu") if torch.cuda.is_available() else ("auto", "cpu")
QUICK = MilTraining(rounds=25, folds=3, hidden=16, attention=8, learning_rate=2e-3)


def bag_of(number: int, *, is_positive: bool, label: int | None = None) -> Bag:
    """Tiles of noise; a positive slide's first three lie three deviations off in four of the features."""
    generator = np.random.default_rng((7, number))
    features = generator.normal(size=(30 + number % 20, WIDTH)).astype(np.float32)
    if is_positive:
        features[:KEYS, :4] += 3
    kind = int(is_positive) if label is None else label
    return Bag(slide=f"s{number:03d}", patient=f"p{number // 2:03d}", label=kind, load=lambda: features)


@pytest.fixture(scope="module")
def trained() -> tuple[list[Bag], MilResult]:
    bags = [bag_of(number, is_positive=number % 5 < 2) for number in range(70)]
    return bags, train_head(bags, class_names=("negative", "positive"), recipe={"encoder": "e"}, options=QUICK)


def test_slide_labels_alone_find_slides_and_tiles(trained: tuple[list[Bag], MilResult]) -> None:
    bags, result = trained
    truth = [bag.label for bag in bags]
    assert roc_auc_score(truth, [result.unseen[bag.slide][1] for bag in bags]) > 0.9
    fresh = [bag_of(number, is_positive=number % 2 == 0) for number in range(1000, 1040)]
    verdicts = [result.head.judge(bag.load()) for bag in fresh]
    found = [verdict.probabilities[1] for verdict in verdicts]
    assert roc_auc_score([bag.label for bag in fresh], found) > 0.9
    finding = []
    for bag, verdict in zip(fresh, verdicts, strict=True):
        assert verdict.attention.sum() == pytest.approx(1, abs=1e-5)
        assert verdict.probabilities.sum() == pytest.approx(1)
        if bag.label:
            finding.append(roc_auc_score(np.arange(len(verdict.attention)) < KEYS, verdict.attention))
    assert np.mean(finding) > 0.95
    assert min(finding) > 0.7


def test_no_patient_is_judged_by_a_head_that_has_seen_it(trained: tuple[list[Bag], MilResult]) -> None:
    bags, result = trained
    for bag in bags:
        for other in bags:
            if bag.patient == other.patient:
                assert result.folds[bag.slide] == result.folds[other.slide]
    assert result.head.provenance["slides"] == {bag.slide: ("negative", "positive")[bag.label] for bag in bags}
    # a patient's labels turned round change the heads of the other folds, but not the one that leaves him out
    odd = [replace(bag, label=1 - bag.label) if bag.patient == "p003" else bag for bag in bags]
    assert patient_folds(odd, folds=3, seed=0) == patient_folds(bags, folds=3, seed=0)
    names, options = ("negative", "positive"), replace(QUICK, rounds=2)
    plain, turned = (train_head(given, class_names=names, recipe={}, options=options).unseen for given in (bags, odd))
    for bag in bags:
        is_left_out = result.folds[bag.slide] == result.folds["s006"]
        assert (plain[bag.slide] == turned[bag.slide]).all() == is_left_out


def test_random_labels_give_no_skill() -> None:
    """Folds that leak, or an end of training chosen on them, would show here."""
    labels = np.random.default_rng(5).permutation(np.arange(60) % 2)
    bags = [bag_of(number, is_positive=False, label=int(labels[number // 2])) for number in range(120)]
    options = replace(QUICK, rounds=6, folds=2)
    result = train_head(bags, class_names=("negative", "positive"), recipe={}, options=options)
    area = roc_auc_score([bag.label for bag in bags], [result.unseen[bag.slide][1] for bag in bags])
    assert 0.3 < area < 0.7


def test_training_is_seeded_and_does_not_depend_on_workers(trained: tuple[list[Bag], MilResult]) -> None:
    bags, result = trained
    options = replace(QUICK, rounds=3, most_tiles=20)

    def once(given: Sequence[Bag], **changes: Any) -> bytes:
        workers = changes.pop("workers", None)
        settled = replace(options, **changes)
        names = ("negative", "positive")
        found = train_head(given, class_names=names, recipe={}, options=settled, workers=workers)
        assert found.unseen.keys() == result.unseen.keys()
        return found.head.to_bytes() + b"".join(found.unseen[bag.slide].tobytes() for bag in bags)

    first = once(bags, workers=1)
    assert first == once(bags[::-1], workers=3) == once(bags, cache_bytes=0)
    assert first != once(bags, seed=1)


def test_classes_weigh_the_same_however_rare() -> None:
    """With nothing to be learnt the odds are even, not nine to one as the slides are."""
    bags = [bag_of(number, is_positive=False, label=int(number >= 54)) for number in range(60)]
    options = replace(QUICK, rounds=4, folds=2)
    result = train_head(bags, class_names=("negative", "positive"), recipe={}, options=options)
    assert 0.3 < np.mean([probabilities[1] for probabilities in result.unseen.values()]) < 0.7


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 3)), min_size=1, max_size=60), st.integers(2, 6))
def test_folds_part_patients_evenly(slides: list[tuple[int, int]], folds: int) -> None:
    bags = [
        Bag(slide=str(number), patient=str(patient), label=label, load=lambda: np.zeros((1, 1), np.float32))
        for number, (patient, label) in enumerate(slides)
    ]
    highest = {bag.patient: max(one.label for one in bags if one.patient == bag.patient) for bag in bags}
    kinds = [[patient for patient, label in highest.items() if (label > 0) == kind] for kind in (False, True)]
    if min(map(len, kinds)) < 2:
        with pytest.raises(PathologyError, match="two of each"):
            patient_folds(bags, folds=folds, seed=0)
        return
    dealt = patient_folds(bags, folds=folds, seed=0)
    assert dealt.keys() == highest.keys()
    count = max(dealt.values()) + 1
    assert 2 <= count == min(folds, *map(len, kinds))
    for kind in kinds:
        sizes = np.bincount([dealt[patient] for patient in kind], minlength=count)
        assert sizes.min() >= 1
        assert np.ptp(sizes) <= 1
    assert patient_folds(bags[::-1], folds=folds, seed=0) == dealt


def test_the_network_is_the_published_one() -> None:
    """Ilse et al. 2018, equations 7 and 9, in double precision."""
    network = GatedAttention(HeadShape(width=5, hidden=7, attention=3, classes=4), seed=2)
    generator = np.random.default_rng(1)
    network.mean.copy_(torch.from_numpy(generator.normal(size=5)))
    network.std.copy_(torch.from_numpy(generator.uniform(0.5, 2, size=5)))
    features = generator.normal(size=(9, 5))
    weights = {name: value.numpy().astype(np.float64) for name, value in network.state_dict().items()}

    def layer(name: str, given: np.ndarray) -> np.ndarray:
        result: np.ndarray = given @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return result

    hidden = np.maximum(layer("project", (features - weights["mean"]) / weights["std"]), 0)
    gated = np.tanh(layer("content", hidden)) / (1 + np.exp(-layer("gate", hidden)))
    scores = layer("attend", gated)[:, 0]
    attention = np.exp(scores) / np.exp(scores).sum()
    expected = layer("decide", (attention[:, None] * hidden).sum(axis=0))
    with torch.inference_mode():
        logits, found = network(torch.from_numpy(features).float())
    np.testing.assert_allclose(found.numpy(), attention, rtol=1e-4)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-5)
    order = generator.permutation(9)
    with torch.inference_mode():
        turned, moved = network(torch.from_numpy(features[order]).float())
    np.testing.assert_allclose(turned, logits, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved, attention[order], rtol=1e-4)


# --- the device


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device cuda is torch's "meta": it computes shapes only, and refuses whatever was left on the CPU."""
    for one in (mil, mil_training):
        monkeypatch.setattr(one, "pick_device", lambda name: torch.device("meta" if name == "cuda" else name))
    plain = torch.optim.AdamW

    def unfused(*arguments: Any, **options: Any) -> torch.optim.AdamW:
        return plain(*arguments, **options | {"fused": False})

    monkeypatch.setattr(torch.optim, "AdamW", unfused)


@pytest.mark.usefixtures("elsewhere")
def test_all_that_computes_is_on_the_device(trained: tuple[list[Bag], MilResult]) -> None:
    bags, result = trained
    with pytest.raises(RuntimeError, match="is not on the expected device"):
        result.head.to("cuda").network(torch.zeros(3, WIDTH))
    # a whole round is trained before anybody asks for a number, which that device does not have
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        train_head(bags, class_names=("negative", "positive"), recipe={}, options=QUICK, device="cuda", workers=1)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        result.head.to("cuda").judge(bags[0].load())
    assert result.head.network.mean.device.type == "cpu"


def test_the_cpu_asked_for_by_name_is_the_same(trained: tuple[list[Bag], MilResult]) -> None:
    bags, result = trained
    options, names = replace(QUICK, rounds=2), ("negative", "positive")
    one, other = (train_head(bags, class_names=names, recipe={}, options=options, device=name) for name in _CPUS)
    assert one.head.digest == other.head.digest
    moved = result.head.to("cpu")
    assert moved.digest == result.head.digest
    assert (moved.judge(bags[0].load()).attention == result.head.judge(bags[0].load()).attention).all()


def test_absent_devices_are_named(trained: tuple[list[Bag], MilResult]) -> None:
    bags, result = trained
    with pytest.raises(PathologyError, match="no device 'tpu'"):
        train_head(bags, class_names=("negative", "positive"), recipe={}, device="tpu")
    with pytest.raises(PathologyError, match="no device 'cuda:99'"):
        result.head.to("cuda:99")


def test_a_slide_too_large_for_the_gpu_is_said_in_one_sentence(
    trained: tuple[list[Bag], MilResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    bags, result = trained

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(GatedAttention, "forward", full)
    with pytest.raises(PathologyError, match=f"memory is too small for {len(bags[0].load())} tiles"):
        result.head.judge(bags[0].load())
    with pytest.raises(PathologyError, match="memory is too small"):
        train_head(bags, class_names=("negative", "positive"), recipe={}, options=QUICK, workers=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_gpu_agrees_with_the_cpu(trained: tuple[list[Bag], MilResult]) -> None:
    bags, result = trained
    there = result.head.to("cuda")
    assert there.digest == result.head.digest
    for bag in bags:
        on_cpu, on_gpu = result.head.judge(bag.load()), there.judge(bag.load())
        np.testing.assert_allclose(on_gpu.probabilities, on_cpu.probabilities, atol=1e-5)
        np.testing.assert_allclose(on_gpu.attention, on_cpu.attention, atol=1e-5)
    options, names = replace(QUICK, rounds=2, most_tiles=20), ("negative", "positive")
    here, gpu = (train_head(bags, class_names=names, recipe={}, options=options, device=d) for d in ("cpu", "cuda"))
    again = train_head(bags, class_names=names, recipe={}, options=options, device="cuda", workers=3)
    assert again.head.digest == gpu.head.digest
    for slide, expected in here.unseen.items():
        np.testing.assert_allclose(gpu.unseen[slide], expected, atol=1e-3)


# --- the file


def test_a_head_comes_back_as_it_was(tmp_path: Path, trained: tuple[list[Bag], MilResult]) -> None:
    bags, result = trained
    path = tmp_path / "new" / "head.safetensors"
    save_head(path, result.head)
    loaded = load_head(path)
    assert path.read_bytes() == loaded.to_bytes()
    assert (loaded.class_names, loaded.recipe) == (("negative", "positive"), {"encoder": "e"})
    one, other = result.head.judge(bags[0].load()), loaded.judge(bags[0].load())
    assert (one.probabilities == other.probabilities).all()
    assert (one.attention == other.attention).all()
    with pytest.raises(ValueError, match="tiles, 12"):
        loaded.judge(np.zeros((3, 5), np.float32))


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_pickles_are_refused_and_never_opened(tmp_path: Path) -> None:
    marker = tmp_path / "exploded"
    torch.save({"head": Bomb(marker)}, tmp_path / "head.pt")
    (tmp_path / "head.pkl").write_bytes(pickle.dumps(Bomb(marker)))
    for name, words in (("head.pt", "pickled code"), ("head.pkl", "is a Python pickle")):
        with pytest.raises(CheckpointError, match=words):
            load_head(tmp_path / name)
    assert not marker.exists()


def test_other_files_are_no_heads(tmp_path: Path, make_checkpoint: Any, trained: tuple[list[Bag], MilResult]) -> None:
    path = tmp_path / "head.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_head(path)
    save_checkpoint(path, make_checkpoint(mpp=2.0))
    with pytest.raises(CheckpointError, match="not a sentinode attention-MIL head"):
        load_head(path)
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(3)}))
    with pytest.raises(CheckpointError, match="another program"):
        load_head(path)
    data = trained[1].head.to_bytes()
    for end, words in ((0, "not a safetensors"), (9, "cut off"), (100, "cut off"), (len(data) - 1, "damaged")):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError, match=words):
            load_head(path)
    path.write_bytes((1 << 60).to_bytes(8, "little") + data[8:])
    with pytest.raises(CheckpointError, match="claims a header"):
        load_head(path)


def changed(head: MilHead, weights: dict[str, Any] | None = None, **meta: Any) -> bytes:
    """The bytes of a head with other weights or metadata."""
    data = head.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    settled = json.loads(header["__metadata__"]["sentinode"]) | meta
    settled.pop("sha256")  # as files of 0.1.0, whose values have to be refused for what they are
    arrays = safetensors.numpy.load(data) | (weights or {})
    kept = {name: value for name, value in arrays.items() if value is not None}
    text = json.dumps({name: value for name, value in settled.items() if value is not None})
    return safetensors.numpy.save(kept, metadata={"sentinode": text})


@pytest.mark.parametrize(
    ("weights", "meta", "words"),
    [
        ({"attend.bias": np.array([np.nan], np.float32)}, {}, "attend.bias.*NaN"),
        ({"std": np.zeros(WIDTH, np.float32)}, {}, "std.*positive"),
        ({"mean": np.zeros(WIDTH + 1, np.float32)}, {}, "mean.*needs float32"),
        ({"mean": np.zeros(WIDTH)}, {}, "mean.*float64"),
        ({"mean": None}, {}, "mean.*missing"),
        ({"more": np.zeros(1, np.float32)}, {}, "more.*does not belong"),
        ({}, {"version": 2}, "version 2"),
        ({}, {"recipe": None}, "missing or extra fields: recipe"),
        ({}, {"more": 1}, "missing or extra fields: more"),
        ({}, {"class_names": ["positive", "negative"]}, "negative first"),
        ({}, {"class_names": ["negative"]}, "names"),
        ({}, {"shape": {"width": 10**9, "hidden": 16, "attention": 8, "classes": 2}}, "sizes from 1"),
        ({}, {"shape": {"width": 12.0, "hidden": 16, "attention": 8, "classes": 2}}, "whole numbers"),
        ({}, {"shape": {"width": 12}}, "project.weight|needs"),
        ({}, {"shape": [1, 2]}, "contradicts"),
    ],
)
def test_tampered_heads_are_refused(
    tmp_path: Path, trained: tuple[list[Bag], MilResult], weights: dict[str, Any], meta: dict[str, Any], words: str
) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(changed(trained[1].head, weights, **meta))
    with pytest.raises(CheckpointError, match=words) as caught:
        load_head(path)
    assert "head.safetensors" in str(caught.value)


# --- attention


def some_attention() -> AttentionMap:
    array = np.array([[0.1, 0.4, np.nan], [0.1, 0.15, 0.25]], np.float32)
    return AttentionMap(frame=Frame(x=8, y=0, downsample=256, shape=(2, 3), mpp=0.5), array=array)


def test_attention_is_ranked_and_says_what_it_is(tmp_path: Path) -> None:
    attention = some_attention()
    known = ~np.isnan(attention.array)
    expected = (rankdata(attention.array[known], method="min") - 1) / 4
    np.testing.assert_allclose(attention.ranks()[known], expected)
    assert np.isnan(attention.ranks()[0, 2])
    picture = draw_attention(attention)
    assert (picture[100, 900] == 255).all()
    assert picture[100, 450].sum() < picture[600, 900].sum() < picture[100, 100].sum()
    save_attention_png(tmp_path / "a.png", attention)
    with Pillow.open(tmp_path / "a.png") as saved:
        assert "not a probability" in saved.info["Description"]
        assert np.array_equal(np.asarray(saved), picture)


def test_attention_and_heatmaps_are_not_mistaken(tmp_path: Path) -> None:
    attention = some_attention()
    write_attention(tmp_path / "a.zarr", attention, {"head": "h"})
    found = read_attention(tmp_path / "a.zarr")
    assert found.frame == attention.frame
    np.testing.assert_array_equal(found.array, attention.array)
    with pytest.raises(ArtefactError):
        read_heatmap(tmp_path / "a.zarr")
    heatmap = Heatmap(frame=attention.frame, array=np.zeros((2, 3), np.float32), tissue=np.zeros((2, 3), bool))
    write_heatmap(tmp_path / "h.zarr", heatmap, {})
    with pytest.raises(ArtefactError, match="attention"):
        read_attention(tmp_path / "h.zarr")
    with pytest.raises(ValueError, match="sum to 1"):
        AttentionMap(frame=attention.frame, array=attention.array * 2)
