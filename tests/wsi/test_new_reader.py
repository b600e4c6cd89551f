"""A new kind of slide file is one class in the list of readers: everything else follows from its few methods."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from slide_files import picture
from typer.testing import CliRunner

from staging.cli import app
from staging.cohorts.camelyon import find_slides
from staging.cohorts.names import slide_key
from staging.errors import NoSlidesError
from wsi.errors import SlideFormatError
from wsi.geometry import Frame, Level, Region, Window
from wsi.readers import opening
from wsi.readers.base import OnBadTile, Reader
from wsi.slide import Slide
from wsi.tiles import TilePlan, stream_tiles
from wsi.writing.convert import convert_slide

MAGIC = b"RAW3"
IMAGE = picture(120, 150)


class RawReader(Reader):
    """One level of RGB, row by row, behind a header of 16 bytes."""

    suffixes = frozenset({".raw3"})

    def __init__(self, path: Path) -> None:
        _, width, height, nm = struct.unpack("<4sIII", path.read_bytes()[:16])
        self._pixels = np.memmap(path, np.uint8, "r", offset=16, shape=(height, width, 3))
        self.levels = (Level(index=0, width=width, height=height, tile_width=64, tile_height=32, downsample=1.0),)
        self.mpp = nm / 1000
        self.properties = {"sentinode.format": "raw3"}

    @classmethod
    def open(cls, path: Path, head: bytes, *, on_bad_tile: OnBadTile) -> RawReader | None:
        del on_bad_tile
        return cls(path) if head.startswith(MAGIC) else None

    def read(self, level: int, window: Window, *, out: NDArray[np.uint8]) -> None:
        out[...] = 255
        inside = window.clipped(self.levels[level].shape)
        if inside is not None:
            out[inside.within(window).slices] = self._pixels[inside.slices]

    def close(self) -> None:
        del self._pixels


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(opening, "READERS", (*opening.READERS, RawReader))
    path = tmp_path / "patient_001_node_2.raw3"
    path.write_bytes(struct.pack("<4sIII", MAGIC, 150, 120, 500) + IMAGE.tobytes())
    return path


def test_its_pixels_come_out_in_every_way_of_reading(raw: Path) -> None:
    padded = np.pad(IMAGE, ((50, 50), (50, 50), (0, 0)), constant_values=255)
    with Slide.open(raw) as slide:
        assert (slide.mpp, slide.properties["sentinode.format"]) == (0.5, "raw3")
        regions = [Region(x=x, y=y, width=40, height=30) for x in (-20, 0, 77, 130) for y in (-10, 33, 110)]
        many = slide.read_many(regions, workers=3)
        for region, found in zip(regions, many, strict=True):
            wanted = padded[region.y + 50 : region.bottom + 50, region.x + 50 : region.right + 50]
            np.testing.assert_array_equal(found, wanted)
            np.testing.assert_array_equal(slide.read(region).array, wanted)
        half = slide.read_at(1.0).array
        np.testing.assert_allclose(half, IMAGE.reshape(60, 2, 75, 2, 3).mean(axis=(1, 3)), atol=0.51)
        np.testing.assert_array_equal(slide.read_at(1.0, exact=False).array, half)
        lazy: Any = slide.to_dask(tiles_per_chunk=1)
        assert lazy.chunks[:2] == ((32, 32, 32, 24), (64, 64, 22))
        np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), IMAGE)
        tiles = list(stream_tiles(slide, TilePlan.over(slide.frame, core_px=70)))
        assert len(tiles) == 6
        assert all(pixels is not None for _, pixels in tiles)


def test_what_it_does_not_offer_is_said(raw: Path) -> None:
    with Slide.open(raw) as slide:
        assert slide.bad_tiles == ()
        assert slide.stored_tiles(0) is None
        with pytest.raises(ValueError, match="raw3 has no JPEG tiles"):
            slide.tile_bytes(0, 0, 0)
        assert not slide.is_missing(slide.frame)
        assert slide.is_missing(Frame(x=-30, y=0, downsample=1.0, shape=(10, 30), mpp=0.5))
    reader = RawReader(raw)
    assert not reader.can_reduce(0)
    with pytest.raises(ValueError, match="level 0 cannot be reduced by 4"):
        reader.read_reduced(0, 4, Window.whole((3, 3)), out=np.empty((3, 3, 3), np.uint8))


def test_cohorts_and_commands_know_it(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "overview.png").write_bytes(b"")
    (found,) = find_slides(tmp_path)
    assert (found.path, found.patient, found.node) == (raw, "patient_001", 2)
    assert slide_key("Slide_7.RAW3") == "slide_7"
    told = CliRunner().invoke(app, ["info", str(raw)])
    assert told.exit_code == 0
    assert "raw3" in told.stdout
    with Slide.open(raw) as slide:
        convert_slide(slide, tmp_path / "copy.tif")
    with Slide.open(tmp_path / "copy.tif") as copy:
        assert copy.frame.shape == (120, 150)


def test_a_kind_whose_reader_is_not_listed_is_unknown(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(SlideFormatError, match="not a slide of a known kind"):
        Slide.open(raw)
    with pytest.raises(NoSlidesError, match="contains no slides"):
        find_slides(raw.parent)


def test_photographs_beside_slides_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RawReader, "is_photograph", True)
    monkeypatch.setattr(opening, "READERS", (*opening.READERS, RawReader))
    assert ".raw3" in opening.photograph_suffixes()
    assert ".raw3" not in opening.slide_suffixes()
    for name in ("a.raw3", "b.tif"):
        (tmp_path / name).write_bytes(b"x")
    assert [slide.name for slide in find_slides(tmp_path)] == ["b"]
    (tmp_path / "b.tif").unlink()
    assert [slide.name for slide in find_slides(tmp_path)] == ["a"]


def test_the_suffixes_of_all_readers() -> None:
    assert opening.slide_suffixes() == {".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".dcm"}
    assert opening.photograph_suffixes() == {".jpg", ".jpeg", ".png"}
