"""Tiles that cannot be decoded: errors by default, white and listed where that was chosen, never a crash."""

from __future__ import annotations

import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi.errors import SlideError, TileError
from wsi.geometry import Frame, Region, Window
from wsi.readers.codec import TileCodec
from wsi.slide import Slide


@pytest.fixture
def damaged(plain: Path, tmp_path: Path) -> Path:
    """Tile (4, 5) of level 0 holds zeros, tile (1, 1) of level 1 is cut off."""
    path = tmp_path / "damaged.tif"
    raw = bytearray(plain.read_bytes())
    with tifffile.TiffFile(plain) as slide:
        first, second = slide.pages[0], slide.pages[1]
        assert isinstance(first, tifffile.TiffPage)
        assert isinstance(second, tifffile.TiffPage)
        offset, count = first.dataoffsets[4 * 8 + 5], first.databytecounts[4 * 8 + 5]
        raw[offset : offset + count] = bytes(count)
        offset, count = second.dataoffsets[5], second.databytecounts[5]
        raw[offset + count // 4 : offset + count] = bytes(count - count // 4)
    path.write_bytes(raw)
    return path


def test_a_bad_tile_raises_by_default(damaged: Path) -> None:
    region = Region(x=300, y=200, width=100, height=100)
    with Slide.open(damaged) as slide:
        for read in (lambda: slide.read(region), lambda: slide.read_many([region, region])):
            with pytest.raises(TileError, match="level 0, tile row 4, tile column 5") as caught:
                read()
            assert str(damaged) in str(caught.value)
        with pytest.raises(TileError, match="level 1, tile row 1, tile column 1"):
            slide.read_window(1, Window(row=0, column=0, height=128, width=128))
        with pytest.raises(TileError, match="level 0, tile row 4, tile column 5"):
            slide.read_frame(Frame(x=0, y=0, downsample=1.5, shape=(280, 333), mpp=None))
        assert slide.bad_tiles == ()


def test_a_bad_tile_is_white_and_listed_where_that_was_chosen(damaged: Path, plain: Path) -> None:
    with Slide.open(plain) as sound, Slide.open(damaged, on_bad_tile="white") as slide:
        wanted = sound.read_window(0, Window(row=0, column=0, height=420, width=500))
        wanted[256:320, 320:384] = 255
        for _ in range(2):
            np.testing.assert_array_equal(slide.read_window(0, Window(row=0, column=0, height=420, width=500)), wanted)
        many = slide.read_many([Region(x=300, y=200, width=100, height=100)] * 2)
        np.testing.assert_array_equal(many[1], wanted[200:300, 300:400])
        assert [(bad.level, bad.row, bad.column) for bad in slide.bad_tiles] == [(0, 4, 5)]
        slide.read_window(1, Window(row=0, column=0, height=128, width=128))
        slide.read_frame(Frame(x=0, y=0, downsample=8.0, shape=(10, 10), mpp=None), exact=False)
        assert [(bad.level, bad.row, bad.column) for bad in slide.bad_tiles] == [(0, 4, 5), (1, 1, 1)]
        assert all(bad.reason for bad in slide.bad_tiles)
        again = pickle.loads(pickle.dumps(slide))  # noqa: S301  (our own bytes)
        assert (again.read(Region(x=330, y=270, width=9, height=9)).array == 255).all()


def test_a_bad_window_of_openslide_is_narrowed_to_its_tiles(damaged: Path) -> None:
    from wsi.readers.openslide import OpenSlideReader  # noqa: PLC0415

    strict, lenient = OpenSlideReader(damaged), OpenSlideReader(damaged, on_bad_tile="white")
    out = np.empty((200, 250, 3), dtype=np.uint8)
    with pytest.raises(SlideError):
        strict.read(0, Window(row=200, column=200, height=200, width=250), out=out)
    lenient.read(0, Window(row=200, column=200, height=200, width=250), out=out)
    assert [(bad.level, bad.row, bad.column) for bad in lenient.bad_tiles] == [(0, 4, 5)]
    assert (out[56:120, 120:184] == 255).all()
    with Slide.open(damaged, on_bad_tile="white") as slide:
        np.testing.assert_array_equal(out, slide.read_window(0, Window(row=200, column=200, height=200, width=250)))


def test_what_to_do_with_a_bad_tile_is_one_of_two(plain: Path) -> None:
    with pytest.raises(ValueError, match="'raise' or 'white'"):
        Slide.open(plain, on_bad_tile="ignore")  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_jpeg_data_never_crash(plain: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    with Slide.open(plain) as slide:
        stored = slide.stored_tiles(0)
        assert stored is not None
        data = bytearray(stored.read(5, 3) or b"")
        codec: TileCodec = slide._open()._tiles._codecs[0]  # type: ignore[attr-defined]
    tiles = codec.jpeg
    assert tiles is not None
    for _ in range(random.integers(1, 6)):
        data[random.integers(0, len(data))] = random.integers(0, 256)
    cut = bytes(data[: random.integers(1, len(data) + 1)])
    with suppress(ValueError, RuntimeError):
        tiles.decode(cut, np.empty((64, 64, 3), dtype=np.uint8))
    with suppress(ValueError, RuntimeError):
        tiles.decode_window(cut, Window(row=9, column=20, height=30, width=25))
    with suppress(ValueError, RuntimeError):
        tiles.decode_reduced(cut, 4)
