from __future__ import annotations

import csv
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
from typer.testing import CliRunner, Result

from staging.commands.mil import app
from staging.errors import ConflictError, DuplicateSlideError, NoSlidesError, TableError
from staging.references import read_predictions
from wsi.cnn.attention import AttentionMap, draw_attention, read_attention, save_attention_png, write_attention
from wsi.cnn.checkpoint import save_checkpoint
from wsi.cnn.encoder import Encoder
from wsi.cnn.features import TileGeometry, features_provenance, write_features
from wsi.cnn.mil import GatedAttention, HeadShape, MilHead, load_head, positive_probability, save_head
from wsi.cnn.mil_training import Bag, MilResult, MilTraining, patient_folds, train_head
from wsi.errors import ArtefactError, CheckpointError, PathologyError
from wsi.geometry import Frame
from wsi.raster import Heatmap, Image, Mask
from wsi.store import read_heatmap, write_heatmap

WIDTH, KEYS = 12, 3
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
    found = [positive_probability(result.head, verdict) for verdict in verdicts]
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
    for name in ("head.pt", "head.pkl"):
        with pytest.raises(CheckpointError, match="pickled code"):
            load_head(tmp_path / name)
    assert not marker.exists()


def test_other_files_are_no_heads(tmp_path: Path, make_checkpoint: Any, trained: tuple[list[Bag], MilResult]) -> None:
    path = tmp_path / "head.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        load_head(path)
    save_checkpoint(path, make_checkpoint(mpp=2.0))
    with pytest.raises(CheckpointError, match="no sentinode attention-MIL head"):
        load_head(path)
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(3)}))
    with pytest.raises(CheckpointError, match="another program"):
        load_head(path)
    data = trained[1].head.to_bytes()
    for end in (0, 9, 100, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError, match=r"whole|damaged"):
            load_head(path)
    path.write_bytes((1 << 60).to_bytes(8, "little") + data[8:])
    with pytest.raises(CheckpointError, match="whole"):
        load_head(path)


def changed(head: MilHead, weights: dict[str, Any] | None = None, **meta: Any) -> bytes:
    """The bytes of a head with other weights or metadata."""
    data = head.to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    settled = json.loads(header["__metadata__"]["sentinode"]) | meta
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
        ({}, {"recipe": None}, "lacks or adds: recipe"),
        ({}, {"more": 1}, "lacks or adds: more"),
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
    with pytest.raises(ValueError, match="sums to 1"):
        AttentionMap(frame=attention.frame, array=attention.array * 2)


# --- the commands


class PixelSlide:
    """Ten by twelve px at 1 um/px, each a tile; a positive slide's first four tiles are red."""

    def __init__(self, number: int, *, is_positive: bool) -> None:
        self.array = np.random.default_rng(number).integers(0, 120, (10, 12, 3), np.uint8)
        if is_positive:
            self.array[0, :4] = (250, 10, 10)

    def frame_at(self, mpp: float) -> Frame:
        return Frame(x=0, y=0, downsample=1 / mpp, shape=(10, 12), mpp=1.0)

    def read_frame(self, frame: Frame) -> Image:
        return Image(frame=frame, array=self.array[int(frame.y) :, int(frame.x) :][:1, :1])

    def is_missing(self, _: Frame) -> bool:
        return False


def colours(batch: torch.Tensor) -> torch.Tensor:
    flat = batch.flatten(1)
    return torch.cat([flat, flat**2, flat[:, :1] * flat], dim=1)


def write_slide(folder: Path, name: str, slide: PixelSlide, *, digest: str = "d") -> None:
    encoder = Encoder(
        path=Path("e"), digest=digest, kind="onnx", size_px=1, width=9, mean=(0, 0, 0), std=(1, 1, 1),
        device=torch.device("cpu"), forward=colours,
    )  # fmt: skip
    geometry = TileGeometry(mpp=1.0, size_px=1, stride_px=1)
    made_from = features_provenance(name, encoder, geometry, mask="all", precision="float32")
    tissue = Mask(frame=slide.frame_at(1.0), array=np.ones((10, 12), bool))
    path = folder / f"{name}.zarr"
    write_features(
        path, slide, encoder, tissue=tissue, geometry=geometry, provenance=made_from, precision="float32", batch=60
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of six patients with two slides each; the even patients' first slides are positive."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = []
    for number in range(12):
        patient, node = divmod(number, 2)
        is_positive = patient % 2 == 0 and node == 0
        name = f"patient_{patient:03d}_node_{node}"
        write_slide(folder, name, PixelSlide(number, is_positive=is_positive))
        rows.append(f"{name}.tif,{('itc', 'macro')[patient % 4 // 2] if is_positive else 'negative'}")
    (folder / "reference.csv").write_text("\n".join(["slide,label", *rows]) + "\n")
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("classes", ["2", "4"])
def test_from_features_and_labels_to_a_scored_table(tmp_path: Path, cohort: Path, classes: str) -> None:
    head, judged = tmp_path / "head.safetensors", tmp_path / "judged"
    reference = cohort / "reference.csv"
    result = call("train", cohort, reference, "-o", head, "--classes", classes, "--rounds", 40, "--folds", 2)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["patients"], told["slides_without_patient"], told["quarantined"]) == (6, 0, {})
    assert sum(told["slides"].values()) == 12
    unseen = read_predictions(head.with_suffix(".unseen.csv"))
    truth = [line.rpartition(",")[2] != "negative" for line in reference.read_text().splitlines()[1:]]
    assert told["auc_unseen"] == pytest.approx(roc_auc_score(truth, list(unseen.values())), abs=1e-4)

    applied = call("apply", head, cohort, "-o", judged)
    assert applied.exit_code == 0, applied.output
    found = read_predictions(judged / "probabilities.csv")
    assert len(found) == 12
    assert roc_auc_score(truth, list(found.values())) == 1
    with (judged / "probabilities.csv").open() as file:
        rows = list(csv.DictReader(file))
    kinds = ("positive",) if classes == "2" else ("itc", "micro", "macro")
    for row in rows:
        assert float(row["probability"]) == pytest.approx(sum(float(row[f"p_{kind}"]) for kind in kinds), abs=1e-6)
    attention = read_attention(judged / "attention" / "patient_000_node_0.zarr").array
    is_key = np.zeros((10, 12), bool)
    is_key[0, :4] = True
    assert roc_auc_score(is_key.ravel(), attention.ravel()) > 0.9
    assert (judged / "attention" / "patient_000_node_0.png").is_file()


def test_bad_features_never_stop_the_others(tmp_path: Path, cohort: Path, trained: tuple[list[Bag], MilResult]) -> None:
    head = tmp_path / "head.safetensors"
    assert call("train", cohort, cohort / "reference.csv", "-o", head, "--rounds", 2).exit_code == 0
    folder = tmp_path / "features"
    write_slide(folder, "good", PixelSlide(1, is_positive=False))
    write_slide(folder, "other", PixelSlide(2, is_positive=False), digest="another encoder")
    (folder / "empty.zarr").mkdir()
    applied = call("apply", head, folder, "-o", tmp_path / "judged")
    assert applied.exit_code == 3
    told = json.loads(applied.stdout)
    assert told["slides"] == 1
    assert "encoder.sha256" in told["quarantined"]["other"]
    assert "DONE.json" in told["quarantined"]["empty"]
    (tmp_path / "labels.csv").write_text("slide,label\ngood,negative\nother,macro\n")
    mixed = call("train", folder, tmp_path / "labels.csv", "-o", tmp_path / "h")
    assert isinstance(mixed.exception, ArtefactError)
    save_head(head, trained[1].head)
    assert call("apply", head, cohort, "-o", tmp_path / "judged").exit_code == 3


def test_slides_without_a_label_or_patient_are_told(tmp_path: Path, cohort: Path) -> None:
    labels = [line for line in (cohort / "reference.csv").read_text().splitlines() if "005_node_1" not in line]
    (tmp_path / "labels.csv").write_text("\n".join(labels))
    patients = "\n".join(f"patient_00{number}_node_{node},P{number}" for number in range(6) for node in range(2))
    (tmp_path / "patients.csv").write_text(f"slide,patient\n{patients}\n")
    arguments = ["train", cohort, tmp_path / "labels.csv", "-o", tmp_path / "h.safetensors", "--rounds", 1]
    told = json.loads(call(*arguments, "--patients", tmp_path / "patients.csv").stdout)
    assert told["left_out"] == {"patient_005_node_1": "the reference has no label for it"}
    assert (told["patients"], sum(told["slides"].values())) == (6, 11)
    (tmp_path / "patients.csv").write_text("a,P1\nA,P2\n")
    result = call(*arguments, "--patients", tmp_path / "patients.csv")
    assert isinstance(result.exception, ConflictError)
    (tmp_path / "labels.csv").write_text("slide,label\nstranger,macro\n")
    assert isinstance(call(*arguments).exception, TableError)
    assert isinstance(call("train", tmp_path, *arguments[2:]).exception, NoSlidesError)
    assert isinstance(call("train", cohort, cohort, *arguments[2:]).exception, DuplicateSlideError)
