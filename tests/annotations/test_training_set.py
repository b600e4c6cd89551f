from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from annotations.annotation import Role
from annotations.errors import PatchStoreError, UnknownGroupError
from annotations.patches.table import PatchTable, read_patch_table, write_patch_table
from annotations.patches.training_set import TrainingSet, open_training_set
from annotations.patches.zarr_store import read_patches
from staging.bars import CohortProgress
from staging.cli import app
from staging.cohorts.camelyon import find_slides, read_stage_table
from staging.errors import ConfigurationError
from staging.phantom import generate_cohort
from staging.training.outputs import PARTS
from staging.training.sampling import sample_cohort
from staging.training.sources import PatchRecipe
from wsi.cnn.checkpoint import load_checkpoint
from wsi.errors import TileError
from wsi.patches.pool import SlidePool
from wsi.patches.reading import read_positions
from wsi.slide import Slide

pytestmark = pytest.mark.slow  # its fixtures take seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients' slides, and the same patches of them as sparse slides, table and Zarr store."""
    folder = tmp_path_factory.mktemp("sets")
    generate_cohort(folder, patients=3, centres=(2,), seed=3, mpp=8.0)
    for name in ("sparse", "table.parquet", "store.zarr"):
        draw(folder, folder / name)
    return folder


def draw(folder: Path, output: Path, **changes: Any) -> None:
    slides = find_slides([folder / "images"])
    with CohortProgress(len(slides), verb="slides sampled", tiles=False) as progress:
        sample_cohort(
            slides,
            folder / "annotations",
            read_stage_table(folder / "stage_labels.csv"),
            output,
            recipe=PatchRecipe(**{"mpp": 8.0, "size_px": 112, "tumour": 6, "normal": 6, "seed": 0} | changes),
            workers=1,
            news=progress,
        )


def split_of(folder: Path, name: str, splits: dict[str, str]) -> Path:
    """The table with other splits, by patient, beside it."""
    table = read_patch_table(folder / "table.parquet")
    path = folder / name
    write_patch_table(path, table.with_split(np.array([splits[patient] for patient in table["patient"].tolist()])))
    return path


def everything(found: TrainingSet) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.arange(len(found.patches))
    (images,) = found.patches.images([chosen])
    return images.copy(), found.patches.targets(chosen)


@pytest.mark.parametrize("name", ["sparse", "table.parquet", "store.zarr"])
@pytest.mark.parametrize("held_bytes", [0, 2**30])
def test_every_form_gives_the_drawn_patches(folder: Path, name: str, held_bytes: int) -> None:
    found = open_training_set([folder / name], held_bytes=held_bytes)
    assert found.is_streamed is (held_bytes == 0)
    table = read_patch_table(folder / "table.parquet")
    images, targets = everything(found)
    np.testing.assert_array_equal(images, read_positions(table.positions(folder), np.arange(len(table)), SlidePool()))
    np.testing.assert_allclose((targets == 1).mean(axis=(1, 2)), table["tumour_fraction"])
    np.testing.assert_array_equal(targets, read_patches(folder / "store.zarr").targets)
    assert found.patches.patients.tolist() == table["patient"].tolist()
    assert (found.patches.mpp, found.patches.size_px, found.left_out) == (8.0, 112, frozenset())
    assert not found.judges


def test_groups_of_ones_own_go_with_the_patches(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    for xml in (own / "annotations").glob("*.xml"):
        xml.write_text(xml.read_text().replace('"metastases"', '"Lesion A"').replace('"normal"', '"Hole"'))
    with pytest.raises(UnknownGroupError, match="Lesion A"):
        draw(own, tmp_path / "refused.parquet")
    groups = {"Lesion A": Role.TUMOUR, "Hole": Role.CUT_OUT}
    _, expected = everything(open_training_set([folder / "sparse"]))
    for name in ("mine", "mine.parquet", "mine.zarr"):
        draw(own, tmp_path / name, groups=groups)
        found = open_training_set([tmp_path / name])
        np.testing.assert_array_equal(everything(found)[1], expected)
    assert open_training_set([tmp_path / "mine"]).groups == groups
    np.testing.assert_array_equal(read_patches(tmp_path / "mine").targets, expected)


def test_sources_are_joined_in_their_order(folder: Path) -> None:
    names = ["store.zarr", "sparse", "table.parquet"]
    for held_bytes in (0, 2**30):
        joined = open_training_set([folder / name for name in names], held_bytes=held_bytes)
        images, targets = everything(joined)
        one, of_one = everything(open_training_set([folder / "sparse"]))
        np.testing.assert_array_equal(images, np.concatenate([one] * 3))
        np.testing.assert_array_equal(targets, np.concatenate([of_one] * 3))


def test_what_is_learnt_is_told_from_all_else(folder: Path) -> None:
    def record(*names: str) -> Any:
        return open_training_set([folder / name for name in names], held_bytes=0).patches.record

    assert record("sparse") == record("sparse")
    assert len({json.dumps(dict(record(*names))) for names in (["sparse"], ["table.parquet"], ["sparse"] * 2)}) == 3


def test_patients_of_the_test_are_left_out(folder: Path) -> None:
    names = sorted(set(read_patch_table(folder / "table.parquet")["patient"].tolist()))
    path = split_of(folder, "split.parquet", dict(zip(names, ("test", "validation", "train"), strict=True)))
    found = open_training_set([path])
    assert found.left_out == {names[0]}
    assert set(found.patches.patients.tolist()) == set(names[1:])
    assert found.judges == {names[1]}
    other = split_of(folder, "other.parquet", dict(zip(names, ("test", "train", "train"), strict=True)))
    with pytest.raises(PatchStoreError, match=f"{names[1]} is in the split validation in one source but not in anoth"):
        open_training_set([path, other])
    with pytest.raises(PatchStoreError, match=f"{names[0]} is left out of one source"):
        open_training_set([path, folder / "table.parquet"])
    only = split_of(folder, "only.parquet", dict.fromkeys(names, "test"))
    with pytest.raises(PatchStoreError, match="all are in the split test"):
        open_training_set([only])


def test_a_zarr_store_keeps_its_split(folder: Path, tmp_path: Path) -> None:
    from annotations.patches.splits import Split  # noqa: PLC0415  (beside its only use)

    draw(folder, tmp_path / "split.zarr", split=Split.parse("folds:3"))
    draw(folder, tmp_path / "split.parquet", split=Split.parse("folds:3"))
    ours, theirs = (open_training_set([tmp_path / name], fold=1) for name in ("split.zarr", "split.parquet"))
    assert ours.left_out == theirs.left_out
    assert len(ours.left_out) == 1
    for first, second in zip(everything(ours), everything(theirs), strict=True):
        np.testing.assert_array_equal(first, second)


def test_folds_are_named(folder: Path) -> None:
    names = sorted(set(read_patch_table(folder / "table.parquet")["patient"].tolist()))
    path = split_of(folder, "folds.parquet", {name: f"fold-{at}" for at, name in enumerate(names)})
    assert open_training_set([path], fold=2).left_out == {names[2]}
    with pytest.raises(PatchStoreError, match=r"into 3 folds .*--fold"):
        open_training_set([path])
    with pytest.raises(PatchStoreError, match="no fold 7, only fold-0, fold-1, fold-2"):
        open_training_set([path], fold=7)
    with pytest.raises(PatchStoreError, match="no folds, so no fold 0"):
        open_training_set([folder / "table.parquet"], fold=0)
    done = CliRunner().invoke(app, ["train", str(path), "-o", str(folder / "m.safetensors"), "--device", "cpu"])
    assert isinstance(done.exception, ConfigurationError)


def test_changed_sources_are_refused(folder: Path, tmp_path: Path) -> None:
    table = read_patch_table(folder / "table.parquet")
    sources = {name: dict(fact) for name, fact in table.about["sources"].items()}
    drawn = next(name for name, fact in sources.items() if fact["contours"])

    def saved(name: str, **changes: Any) -> Path:
        about = {**table.about, "sources": {**sources, name: {**sources[name], **changes}}}
        write_patch_table(tmp_path / "t.parquet", replace(table, about=about))
        return tmp_path / "t.parquet"

    with pytest.raises(PatchStoreError, match="has changed since patches were drawn"):
        open_training_set([saved(drawn, fingerprint="0")])
    with pytest.raises(PatchStoreError, match="has changed since patches were labelled"):
        open_training_set([saved(drawn, contours_sha256="0")])
    with pytest.raises(PatchStoreError, match=r"gone\.xml: cannot be read"):
        open_training_set([saved(drawn, contours=str(tmp_path / "gone.xml"))])
    write_patch_table(tmp_path / "t.parquet", replace(table, about={}))
    with pytest.raises(PatchStoreError, match="does not say where its annotations are"):
        open_training_set([tmp_path / "t.parquet"])


def test_what_cannot_be_joined_is_refused(folder: Path, tmp_path: Path) -> None:
    draw(folder, tmp_path / "small.parquet", size_px=96)
    with pytest.raises(PatchStoreError, match=r"the same size and resolution: 96 px at 8\.0 um/px, 112 px"):
        open_training_set([tmp_path / "small.parquet", folder / "sparse"])
    with pytest.raises(PatchStoreError, match="none given"):
        open_training_set([])
    with pytest.raises(PatchStoreError, match="not a complete patch store"):
        open_training_set([tmp_path])
    mixed = doubled(read_patch_table(folder / "table.parquet"))
    write_patch_table(tmp_path / "mixed.parquet", mixed)
    with pytest.raises(PatchStoreError, match="patches must have the same size_px, found 56, 112"):
        open_training_set([tmp_path / "mixed.parquet"])


def doubled(table: PatchTable) -> PatchTable:
    sizes = np.where(np.arange(len(table)) % 2, 112, 56).astype(np.int32)
    return replace(table, columns={**table.columns, "size_px": sizes})


def test_training_on_a_split_table_streams_and_leaves_the_test_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(set(read_patch_table(folder / "table.parquet")["patient"].tolist()))
    path = split_of(folder, "run.parquet", dict(zip(names, ("train", "validation", "test"), strict=True)))
    monkeypatch.setattr("annotations.patches.training_set.HELD_BYTES", 0)
    model = tmp_path / "model.safetensors"
    done = CliRunner().invoke(app, ["train", str(path), "-o", str(model), "--device", "cpu", "--epochs", "1"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["streamed"]
    assert (told["held_out"], told["left_out"]) == ([names[1]], [names[2]])
    assert "patches_sha256" in load_checkpoint(model).provenance


def test_a_damaged_tile_ends_training_or_is_told(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(folder / "sparse", store)
    table = read_patch_table(store / "patches.parquet")
    name = str(table["slide"][0])
    data = bytearray((store / table.files[name]).read_bytes())
    with Slide.open(store / table.files[name]) as slide:
        stored = slide.stored_tiles(0)
        assert stored is not None
        found_tiles = {where: stored.read(*where) for where in np.ndindex(stored.rows, stored.columns)}
    where, tile = next((where, tile) for where, tile in found_tiles.items() if tile)
    at = data.find(tile)
    data[at + 2 : at + 30] = bytes(28)  # a JPEG without its first markers
    (store / table.files[name]).write_bytes(bytes(data))
    facts = {slide: dict(fact) for slide, fact in table.about["store"].items()}
    facts[name]["fingerprint"] = Slide(store / table.files[name]).fingerprint()
    write_patch_table(store / "patches.parquet", replace(table, about={**table.about, "store": facts}))
    shutil.rmtree(store / PARTS)  # as earlier versions left a store: without what its files were
    with pytest.raises(TileError, match="tile row"):
        everything(open_training_set([store]))
    found = open_training_set([store], on_bad_tile="white", held_bytes=0)
    everything(found)
    assert {(Path(slide).stem, bad.row, bad.column) for slide, bad in found.bad_tiles} == {(name, *where)}
    model = tmp_path / "model.safetensors"
    command = ["train", str(store), "-o", str(model), "--device", "cpu", "--epochs", "1", "--on-bad-tile", "white"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["bad_tiles"] == 1
    assert "is white:" in done.stderr
