"""Patches for other tools: what WebDataset, CLAM, ImageFolder and Zarr readers find."""

from __future__ import annotations

import builtins
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from annotations.errors import PatchStoreError
from annotations.patches.contact_sheet import contact_sheet, pick_examples
from annotations.patches.exports import export_hdf5, export_images, export_webdataset, images_of
from annotations.patches.labels import LabelRule
from annotations.patches.sparse_store import finish_store, patch_windows, read_pixels, read_store, store_slide
from annotations.patches.table import COLUMNS, PatchTable
from wsi.geometry import Frame
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

SIDE, COUNT = 32, 7


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    path = tmp_path_factory.mktemp("slides") / "p1.node_2.tif"
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for _ in range(16)]
    write_pyramid(path, width=512, height=512, mpp=0.5, tiles=tiles, tile_size=128)
    return Slide.open(path)


@pytest.fixture(scope="module")
def rows(slide: Slide) -> PatchTable:
    rng = np.random.default_rng(1)
    columns: dict[str, Any] = {
        "slide": [slide.name] * COUNT,
        "patient": ["p1"] * COUNT,
        "centre": [-1] * COUNT,
        "class": ["tumour", "normal"] * 3 + ["tumour"],
        "kind": ["border", "near"] * 3 + ["tumour"],
        "lesion": [0] * COUNT,
        "tumour_fraction": rng.uniform(0, 1, COUNT),
        "x": rng.integers(0, 200, COUNT) * 2,
        "y": rng.integers(0, 200, COUNT) * 2,
        "level": [1] * COUNT,
        "mpp": [1.0] * COUNT,
        "downsample": [2.0] * COUNT,
        "size_px": [SIDE] * COUNT,
        "split": ["train"] * 5 + ["test"] * 2,
    }
    return PatchTable(
        columns={
            name: np.array(columns[name], dtype=object if kind is str else kind) for name, kind in COLUMNS.items()
        },
        rule=LabelRule(),
        files={slide.name: str(slide.path)},
        about={},
    )


@pytest.fixture(scope="module")
def expected(slide: Slide, rows: PatchTable) -> NDArray[np.uint8]:
    return np.stack(
        [
            slide.read_frame(Frame(x=x, y=y, downsample=2, shape=(SIDE, SIDE), mpp=None)).array
            for x, y in zip(rows["x"], rows["y"], strict=True)
        ]
    )


def test_images_row_by_row(
    slide: Slide, rows: PatchTable, expected: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annotations.patches.exports._READ_AT_ONCE", 3)
    found = dict(images_of(slide, rows))
    assert list(found) == list(range(COUNT))
    np.testing.assert_array_equal(np.stack(list(found.values())), expected)


def test_folders_of_pictures(slide: Slide, rows: PatchTable, expected: NDArray[np.uint8], tmp_path: Path) -> None:
    export_images(tmp_path, slide, rows, quality=None)
    found = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*.*") if path.is_file()}
    assert len(found) == COUNT
    for number in range(COUNT):
        x, y = int(rows["x"][number]), int(rows["y"][number])
        name = f"{rows['split'][number]}/{rows['class'][number]}/p1_node_2_{number:06d}_x{x}_y{y}.png"
        np.testing.assert_array_equal(np.asarray(Pillow.open(found[name])), expected[number])
    export_images(tmp_path / "jpeg", slide, rows, quality=100)
    first = np.asarray(Pillow.open(next((tmp_path / "jpeg" / "train" / "tumour").glob("*_000000_*.jpg"))))
    assert np.abs(first.astype(int) - expected[0]).mean() < 2


def test_webdataset_shards(
    slide: Slide, rows: PatchTable, expected: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annotations.patches.exports.SHARD_PATCHES", 3)
    for folder in ("a", "b"):
        export_webdataset(tmp_path / folder, slide, rows, quality=None)
    shards = sorted((tmp_path / "a").iterdir())
    assert [shard.name for shard in shards] == [
        "test-p1.node_2-0000.tar",
        "train-p1.node_2-0000.tar",
        "train-p1.node_2-0001.tar",
    ]
    assert all(shard.read_bytes() == (tmp_path / "b" / shard.name).read_bytes() for shard in shards)
    samples: dict[str, dict[str, bytes]] = {}
    for shard in shards[1:]:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")  # as WebDataset takes names apart
                content = tar.extractfile(member)
                assert content is not None
                samples.setdefault(key, {})[kind] = content.read()
    assert len(samples) == 5
    for number, (key, sample) in enumerate(samples.items()):
        assert f"_{number:06d}_" in key
        np.testing.assert_array_equal(np.asarray(Pillow.open(io.BytesIO(sample["png"]))), expected[number])
        assert int(sample["cls"]) == rows.labels[number]
        assert json.loads(sample["json"])["tumour_fraction"] == rows["tumour_fraction"][number]


def test_hdf5_as_clam_reads_it(slide: Slide, rows: PatchTable, expected: NDArray[np.uint8], tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    for folder in ("a", "b"):
        export_hdf5(tmp_path / folder, slide, rows)
    path = tmp_path / "a" / "p1.node_2.h5"
    assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["imgs"][:], expected)
        np.testing.assert_array_equal(file["labels"][:], rows.labels)
        coords, facts = file["coords"], file["coords"].attrs
        assert file["imgs"].attrs["wsi_name"] == facts["name"] == slide.name
        assert tuple(facts["level_dim"]) == (256, 256)
        # CLAM's own way to the pixels: read_region(coord, patch_level, (patch_size, patch_size))
        from openslide import OpenSlide  # noqa: PLC0415

        with OpenSlide(str(slide.path)) as opened:
            size = int(facts["patch_size"])
            theirs = opened.read_region(tuple(coords[2].tolist()), int(facts["patch_level"]), (size, size))
        np.testing.assert_allclose(np.asarray(theirs)[..., :3].astype(int), expected[2].astype(int), atol=3)


def test_hdf5_without_h5py(slide: Slide, rows: PatchTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PatchStoreError, match=r"sentinode\[export\]"):
        export_hdf5(tmp_path, slide, rows)


def test_a_store_of_sparse_slides(slide: Slide, rows: PatchTable, expected: NDArray[np.uint8], tmp_path: Path) -> None:
    done = store_slide(tmp_path, slide, rows, annotation_file=None)
    with pytest.raises(PatchStoreError, match="a second call resumes it"):
        read_store(tmp_path)
    finish_store(tmp_path, rows, {slide.name: done})
    table, images, targets = read_pixels(tmp_path)
    np.testing.assert_array_equal(images, expected)
    assert not targets.any()
    assert table.files == {slide.name: "slides/p1.node_2.tif"}
    level = patch_windows(slide, rows)
    assert list(level) == [1]
    copy = tmp_path / "slides" / "p1.node_2.tif"
    assert copy.stat().st_size < Path(slide.path).stat().st_size / 2
    copy.write_bytes(copy.read_bytes()[:-1])
    with pytest.raises(PatchStoreError, match="has changed since it was written"):
        read_store(tmp_path)


def test_the_contact_sheet_shows_every_class_and_kind(rows: PatchTable, expected: NDArray[np.uint8]) -> None:
    examples = pick_examples(rows, each=2)
    assert {title.split(":")[0]: len(some) for title, some in examples.items()} == {
        "tumour, drawn as tumour": 1,
        "tumour, drawn as border": 2,
        "normal, drawn as near": 2,
    }
    sheet = contact_sheet(rows, examples, {title: list(expected[some]) for title, some in examples.items()})
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == 3
    assert {(200, 40, 30), (40, 120, 60)} <= {tuple(pixel) for pixel in sheet.reshape(-1, 3).tolist()}
