from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import typer
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from slide_files import forget_tiles
from torch import nn
from typer.testing import CliRunner, Result

from staging.commands.features import features as features_command
from staging.errors import ConfigurationError
from wsi.cnn.device import lone_threads
from wsi.cnn.encoders import features as module
from wsi.cnn.encoders.encoder import Encoder, load_encoder
from wsi.cnn.encoders.features import TileGeometry, encode_tiles, features_provenance, read_features, write_features
from wsi.errors import ArtefactError, CheckpointError, NoTissueError, PathologyError, TileError
from wsi.geometry import Frame, Window
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap, Image, Mask
from wsi.store import publish
from wsi.tiles import TilePlan
from wsi.writing.pyramid import write_pyramid

SIZE = 16


class ArraySlide:
    """An array as a slide at 2 um/px, four level-0 px each; tiles of 32 px named as missing are not stored."""

    path = "slide"

    def __init__(self, array: np.ndarray, missing: Sequence[tuple[int, int]] = ()) -> None:
        self.array = array.copy()
        self.stored = np.ones((-(-array.shape[0] // 32), -(-array.shape[1] // 32)), bool)
        for row, column in missing:
            self.stored[row, column] = False
            self.array[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = 255

    def frame_at(self, mpp: float) -> Frame:
        assert mpp == 2.0
        return Frame(x=0, y=0, downsample=4, shape=(self.array.shape[0], self.array.shape[1]), mpp=0.5)

    def read_frame(self, frame: Frame) -> Image:
        return Image(frame=frame, array=crop(self.array, round(frame.y / 4), round(frame.x / 4), frame.shape[0]))

    def is_missing(self, frame: Frame) -> bool:
        top, left = max(0, math.floor(frame.y / 128)), max(0, math.floor(frame.x / 128))
        bottom, right = (math.ceil((at + frame.shape[0] * 4) / 128) for at in (frame.y, frame.x))
        return not self.stored[top : max(0, bottom), left : max(0, right)].any()


def crop(array: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    padded = np.pad(array, ((size, size * 2), (size, size * 2), (0, 0)), constant_values=255)
    return padded[top + size : top + 2 * size, left + size : left + 2 * size]


def alone(encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
    """The features of one tile, on one thread."""
    with lone_threads(1, "oracle") as pool:
        features: np.ndarray = pool.submit(encoder.encode, pixels[None]).result()[0]
    return features


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.AdaptiveAvgPool2d(1))
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layers(x)
        return features.flatten(1)


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "small.pt2"
    sides = torch.export.Dim.DYNAMIC
    shape: Any = ({0: sides, 2: sides, 3: sides},)
    torch.export.save(torch.export.export(Small().eval(), (torch.zeros(2, 3, 64, 64),), dynamic_shapes=shape), path)
    return path


@pytest.fixture(scope="module")
def encoder(encoder_file: Path) -> Encoder:
    return load_encoder(encoder_file, size_px=SIZE, device="cpu")


def noise(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns, 3), np.uint8)


def tissue_of(slide: ArraySlide, *, part: tuple[slice, slice] = (slice(None), slice(None))) -> Mask:
    frame = slide.frame_at(2.0)
    mask = np.zeros(frame.shape, bool)
    mask[part] = True
    return Mask(frame=frame, array=mask)


def write(path: Path, slide: ArraySlide, encoder: Encoder, **options: Any) -> dict[str, Any]:
    geometry = TileGeometry(mpp=2.0, size_px=SIZE, stride_px=options.pop("stride_px", SIZE))
    precision = options.setdefault("precision", "float32")
    made_from = features_provenance("print", encoder, geometry, mask="all", precision=precision)
    options.setdefault("tissue", tissue_of(slide))
    write_features(path, slide, encoder, geometry=geometry, provenance=made_from, **options)
    return made_from


@pytest.mark.slow
@pytest.mark.parametrize("stride", [16, 8])
def test_every_tile_is_encoded_where_it_lies(tmp_path: Path, encoder: Encoder, stride: int) -> None:
    slide = ArraySlide(noise(90, 130), missing=[(0, 0), (1, 0)])
    part = (slice(0, 60), slice(0, 130))
    made_from = write(tmp_path / "s.zarr", slide, encoder, stride_px=stride, tissue=tissue_of(slide, part=part))
    found = read_features(tmp_path / "s.zarr")
    halo = (SIZE - stride) // 2
    expected = {}
    for row in range(-(-90 // stride)):
        for column in range(-(-130 // stride)):
            top, left = row * stride - halo, column * stride - halo
            frame = slide.frame_at(2.0).part(Window(row=top, column=left, height=SIZE, width=SIZE))
            if row * stride < 60 and not slide.is_missing(frame):
                pixels = crop(slide.array, top, left, SIZE)
                expected[row, column] = (left * 4, top * 4, alone(encoder, pixels))
    assert [tuple(cell) for cell in found.cells.tolist()] == sorted(expected)
    features = found.load()
    for cell, position, row_of in zip(found.cells.tolist(), found.positions.tolist(), features, strict=True):
        x, y, wanted = expected[tuple(cell)]
        assert position == [x, y]
        np.testing.assert_array_equal(row_of, wanted)
    assert found.provenance == made_from
    assert (found.name, found.width, found.grid.downsample) == ("s", 5, 4 * stride)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.permutations(range(20)))
def test_order_batch_and_workers_never_change_a_bit(
    encoder: Encoder, workers: int, batch: int, order: list[int]
) -> None:
    slide = ArraySlide(noise(64, 80))
    plan = TilePlan.over(slide.frame_at(2.0), core_px=SIZE)
    assert len(plan) == 20
    shuffled = TilePlan(frame=plan.frame, core_px=SIZE, halo_px=0, cores=tuple(plan.cores[index] for index in order))
    found: dict[tuple[int, int], np.ndarray] = {}
    for windows, rows in encode_tiles(slide, encoder, shuffled, batch=batch, workers=workers):
        assert len(windows) == len(rows) <= batch
        found |= {(one.row, one.column): row for one, row in zip(windows, rows, strict=True)}
    assert len(found) == 20
    expected = np.stack(
        [alone(encoder, crop(slide.array, row * SIZE, column * SIZE, SIZE)) for row, column in plan.cores]
    )
    np.testing.assert_array_equal(np.stack([found[where] for where in plan.cores]), expected)


def test_chunks_hold_all_rows_in_order(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = ArraySlide(noise(100, 100), missing=[(1, 1)])
    told: list[tuple[int, int]] = []
    write(tmp_path / "one.zarr", slide, encoder, on_tiles=lambda *counts: told.append(counts))
    monkeypatch.setattr(module, "_CHUNK_ROWS", 7)
    write(tmp_path / "many.zarr", slide, encoder, batch=5)
    one, many = read_features(tmp_path / "one.zarr"), read_features(tmp_path / "many.zarr")
    np.testing.assert_array_equal(one.cells, many.cells)
    np.testing.assert_array_equal(one.load(), many.load())
    assert told[-1] == (49, 49)
    group: Any = zarr.open_group(tmp_path / "many.zarr", mode="r")
    assert group["features"].chunks == (7, 5)
    assert group["features"].metadata.zarr_format == 3


def test_float16_is_the_rounded_float32(tmp_path: Path, encoder: Encoder) -> None:
    slide = ArraySlide(noise(40, 40))
    write(tmp_path / "a.zarr", slide, encoder)
    write(tmp_path / "b.zarr", slide, encoder, precision="float16")
    fine, coarse = read_features(tmp_path / "a.zarr"), read_features(tmp_path / "b.zarr")
    np.testing.assert_array_equal(fine.load().astype(np.float16), coarse.load())
    assert fine.provenance != coarse.provenance
    group: Any = zarr.open_group(tmp_path / "b.zarr", mode="r")
    assert group["features"].dtype == np.float16


def scaled(encoder: Encoder, change: Callable[[torch.Tensor], torch.Tensor]) -> Encoder:
    inner = encoder.forward
    return replace(encoder, forward=lambda batch: change(inner(batch)))


def test_unusable_features_are_refused_and_nothing_is_published(tmp_path: Path, encoder: Encoder) -> None:
    slide = ArraySlide(noise(40, 40))
    for factor, words in ((math.nan, "NaN"), (math.inf, "NaN or infinity")):
        with pytest.raises(PathologyError, match=rf"{words}.*|tile at x 0, y 0"):
            write(tmp_path / "s.zarr", slide, scaled(encoder, lambda rows, by=factor: rows * by))  # type: ignore[misc]
    with pytest.raises(PathologyError, match="float32"):
        write(tmp_path / "s.zarr", slide, scaled(encoder, lambda rows: rows * 1e6), precision="float16")
    with pytest.raises(NoTissueError):
        write(tmp_path / "s.zarr", ArraySlide(noise(32, 32), missing=[(0, 0)]), encoder)
    with pytest.raises(ValueError, match="positive"):
        encode_tiles(slide, encoder, TilePlan.over(slide.frame_at(2.0), core_px=SIZE), batch=0)
    with pytest.raises(ValueError, match="windows"):
        encode_tiles(slide, encoder, TilePlan.over(slide.frame_at(2.0), core_px=SIZE + 1))
    assert list(tmp_path.iterdir()) == []


def test_a_slide_that_cannot_be_read_leaves_nothing(tmp_path: Path, encoder: Encoder) -> None:
    slide = ArraySlide(noise(40, 40))

    def fail(_: Frame) -> Image:
        raise TileError("slide.tif", "cannot be decoded")

    slide.read_frame = fail  # type: ignore[assignment, method-assign]
    with pytest.raises(TileError):
        write(tmp_path / "s.zarr", slide, encoder)
    assert list(tmp_path.iterdir()) == []


def test_damaged_features_are_refused(tmp_path: Path, encoder: Encoder) -> None:
    path = tmp_path / "s.zarr"
    with pytest.raises(ArtefactError, match="no complete"):
        read_features(path)
    slide = ArraySlide(noise(40, 40))
    write(path, slide, encoder)
    chunk = next(file for file in (path / "features").rglob("*") if file.is_file() and file.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match="another size"):
        read_features(path)
    frame = slide.frame_at(2.0)
    empty = Heatmap(frame=frame, array=np.zeros(frame.shape, np.float32), tissue=np.zeros(frame.shape, bool))
    write_heatmap(tmp_path / "h.zarr", empty, {})
    with pytest.raises(ArtefactError, match="sentinode heatmap"):
        read_features(tmp_path / "h.zarr")


@pytest.mark.parametrize(
    ("array", "change", "words"),
    [
        ("features", lambda rows: rows[:, 0], "not enough values"),
        ("features", lambda rows: rows[1:], "features at"),
        ("cells", lambda rows: rows[:, :1], "features at"),
        ("positions", lambda rows: rows[:-1], "features at"),
        ("cells", lambda rows: rows + 1, "outside the slide"),
        ("cells", lambda rows: rows * 0, "two of its tiles"),
        (None, {"provenance": 3}, "no readable features"),
        (None, {"frame": None}, "no readable features"),
    ],
)
def test_features_of_other_programs_that_contradict_themselves_are_refused(
    tmp_path: Path, encoder: Encoder, array: str | None, change: Any, words: str
) -> None:
    made_from = write(tmp_path / "s.zarr", ArraySlide(noise(40, 40)), encoder)
    with publish(tmp_path / "odd.zarr", made_from, kind="feature table") as work:
        shutil.copytree(tmp_path / "s.zarr", work, dirs_exist_ok=True)
        (work / "DONE.json").unlink()
        group: Any = zarr.open_group(work, mode="r+")
        if array is None:
            group.attrs.update(change)
        else:
            rows = change(group[array][...])
            del group[array]
            group.create_array(array, shape=rows.shape, dtype=rows.dtype)[...] = rows
    with pytest.raises(ArtefactError, match=words) as caught:
        read_features(tmp_path / "odd.zarr")
    assert "odd.zarr" in str(caught.value)


@pytest.mark.parametrize(("size", "stride"), [(16, 17), (16, 0), (16, 7)])
def test_impossible_strides_are_refused(size: int, stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        TileGeometry(mpp=1.0, size_px=size, stride_px=stride)


# --- the command


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides with a piece of pink tissue and one that is cut off."""
    folder = tmp_path_factory.mktemp("slides")
    generator = np.random.default_rng(2)
    for number in range(2):
        image = np.full((512, 512, 3), 243, np.uint8)
        image[100:360, 90 + 50 * number : 400] = (200, 120, 170)
        image = (image + generator.integers(-8, 9, image.shape)).astype(np.uint8)
        tiles = [image[y : y + 256, x : x + 256] for y in (0, 256) for x in (0, 256)]
        name = folder / f"patient_00{number}_node_0.tif"
        write_pyramid(name, width=512, height=512, mpp=2.0, tile_size=256, tiles=tiles)
    data = (folder / "patient_000_node_0.tif").read_bytes()
    (folder / "patient_002_node_0.tif").write_bytes(data[: len(data) // 2])
    return folder


app = typer.Typer()
app.command()(features_command)


def call(slides: Path, output: Path, encoder: Path, *more: str) -> Result:
    options = ["--mpp", "4", "--size", "32", "--device", "cpu", *more]
    return CliRunner().invoke(app, [str(slides), "-o", str(output), "-e", str(encoder), *options])


@pytest.mark.slow
def test_a_bad_slide_never_stops_the_others(tmp_path: Path, slides: Path, encoder_file: Path) -> None:
    result = call(slides, tmp_path / "out", encoder_file, "--workers", "1")
    assert result.exit_code == 3, result.output
    told = json.loads(result.stdout)
    assert (told["slides"], told["made_before"], told["width"]) == (2, 0, 5)
    assert list(told["quarantined"]) == ["patient_002_node_0"]
    assert told["encoder"]["mean"] == [0.485, 0.456, 0.406]
    assert "patient_002_node_0" in (tmp_path / "out" / "quarantine.csv").read_text()
    found = read_features(tmp_path / "out" / "patient_001_node_0.zarr")
    assert len(found) > 20
    assert found.provenance["encoder"]["sha256"] == load_encoder(encoder_file, size_px=32, device="cpu").digest
    assert found.provenance["tiles"] == {"mpp": 4.0, "size_px": 32, "stride_px": 32}

    chunk = next((tmp_path / "out" / "patient_000_node_0.zarr" / "features" / "c").rglob("0"))
    chunk = chunk if chunk.is_file() else chunk / "0"
    chunk.write_bytes(b"damaged")
    before = (tmp_path / "out" / "patient_001_node_0.zarr").stat().st_ino
    again = call(slides, tmp_path / "out", encoder_file, "--workers", "1")
    assert json.loads(again.stdout)["made_before"] == 1
    assert len(read_features(tmp_path / "out" / "patient_000_node_0.zarr").load()) > 20
    assert (tmp_path / "out" / "patient_001_node_0.zarr").stat().st_ino == before

    other = call(slides, tmp_path / "out", encoder_file, "--dtype", "float32")
    assert isinstance(other.exception, ConfigurationError)
    assert "precision: float16 -> float32" in str(other.exception)


@pytest.mark.slow
def test_processes_give_the_same_bytes(tmp_path: Path, slides: Path, encoder_file: Path) -> None:
    for workers in ("1", "2"):
        assert call(slides, tmp_path / workers, encoder_file, "--workers", workers).exit_code == 3
    names = sorted(file.relative_to(tmp_path / "1") for file in (tmp_path / "1").rglob("*") if file.is_file())
    assert names
    for name in names:
        if name.name != ".lock":
            assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


def test_wrong_usage_touches_nothing(tmp_path: Path, slides: Path, encoder_file: Path) -> None:
    for more, error in (
        (["--stride", "31"], ConfigurationError),
        (["--std", "0", "1", "1"], ConfigurationError),
        (["--mean", "0", "nan", "1"], ConfigurationError),
        (["--encoder", str(slides / "patient_000_node_0.tif")], CheckpointError),
    ):
        assert isinstance(call(slides, tmp_path / "out", encoder_file, *more).exception, error)
    assert not (tmp_path / "out").exists()


def test_tiles_read_as_white_are_told_by_every_later_call(tmp_path: Path, slides: Path, encoder_file: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    source = next(path for path in sorted(slides.glob("*.tif")) if path.stat().st_size > 10_000)
    raw = bytearray(source.read_bytes())
    with tifffile.TiffFile(source) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        index = max(range(len(page.databytecounts)), key=lambda at: page.databytecounts[at])  # tissue, surely
        start, count = page.dataoffsets[index], page.databytecounts[index]
    raw[start : start + count] = bytes(count)
    (folder / source.name).write_bytes(raw)
    white = ("--on-bad-tile", "white", "--mpp", "2")
    refused = call(folder, tmp_path / "out", encoder_file, *white)
    assert (refused.exit_code, "1 bad tile under tissue" in refused.stderr) == (3, True), refused.output
    assert not list((tmp_path / "out").glob("*.zarr"))
    told = []
    for _ in range(2):
        done = call(folder, tmp_path / "out", encoder_file, *white, "--allow-partial")
        assert done.exit_code == 0, done.output
        told.append(json.loads(done.stdout)["bad_tiles"])
    assert told[0] == told[1] != {}


def test_features_of_a_slide_without_its_finest_tiles_are_refused_before_the_encoder_runs(
    tmp_path: Path, slides: Path, encoder_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = tmp_path / "slides", "patient_000_node_0"
    folder.mkdir()
    shutil.copy(slides / f"{name}.tif", folder)
    forget_tiles(folder / f"{name}.tif")
    options = ("--mpp", "2", "--workers", "1")
    with monkeypatch.context() as patched:
        patched.setattr(module, "encode_tiles", lambda *_, **__: pytest.fail("encoded"))
        refused = call(folder, tmp_path / "out", encoder_file, *options)
    told = json.loads(refused.stdout)
    assert (refused.exit_code, told["slides"], told["partial"]) == (3, 0, [])
    assert "coverage: only 0.00 of 0.3" in told["quarantined"][name]
    assert "4 missing tiles under tissue" in (tmp_path / "out" / "quarantine.csv").read_text()


def test_features_say_how_much_of_the_tissue_they_show(tmp_path: Path, slides: Path, encoder_file: Path) -> None:
    folder, name = tmp_path / "slides", "patient_001_node_0"
    folder.mkdir()
    for one in ("patient_000_node_0", name):
        shutil.copy(slides / f"{one}.tif", folder)
    forget_tiles(folder / f"{name}.tif", only=3)
    options = ("--mpp", "2", "--workers", "1", "--size", "32")
    refused = call(folder, tmp_path / "out", encoder_file, *options)
    assert (refused.exit_code, list(json.loads(refused.stdout)["quarantined"])) == (3, [name]), refused.output
    allowed = call(folder, tmp_path / "out", encoder_file, *options, "--allow-partial")
    assert (allowed.exit_code, json.loads(allowed.stdout)["partial"]) == (0, [name])
    found = read_features(tmp_path / "out" / f"{name}.zarr").coverage
    assert found is not None
    assert (found.missing_tiles, found.bad_tiles) == (1, 0)
    whole = read_features(tmp_path / "out" / "patient_000_node_0.zarr").coverage
    assert whole is not None
    assert whole.looked_mm2 == whole.tissue_mm2 > 0.3
    again = call(folder, tmp_path / "out", encoder_file, *options)
    assert (again.exit_code, json.loads(again.stdout)["made_before"]) == (3, 1)
