"""Ways of reading: parts of tiles, many regions at once, raw tiles, lazy arrays, reduced and damaged tiles."""

from __future__ import annotations

import io
import multiprocessing
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import simplejpeg
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pillow
from slide_files import RNG, picture, through_openslide, write_tiff

from wsi.geometry import Frame, Region, Window, tile_order
from wsi.readers import jpeg, turbo
from wsi.readers.source import FileSource
from wsi.readers.tiff_tiles import _Recent
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

RealData = Callable[[str], Path]
SUBSAMPLINGS = [("444", 8), ("422", 16), ("420", 16), ("440", 8), ("411", 32)]


@pytest.fixture(params=["cropping", "whole tiles"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With libjpeg-turbo 3, and as where it is not installed."""
    if request.param == "whole tiles":
        monkeypatch.setattr(jpeg, "find_turbo", lambda: None)
    else:
        needs_turbo()
    return str(request.param)


def needs_turbo() -> turbo.Turbo:
    """What decodes a part of a JPEG."""
    found = turbo.find_turbo()
    if found is None:
        pytest.skip("libjpeg-turbo 3 is not installed")
    return found


# --- parts of tiles -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("subsampling", "unit"), SUBSAMPLINGS)
def test_a_cropped_jpeg_is_cut_out_of_the_whole(subsampling: str, unit: int) -> None:
    cropper = needs_turbo()
    noise = RNG.integers(0, 256, (128, 160, 3), dtype=np.uint8)  # every wrong neighbour shows
    stream = simplejpeg.encode_jpeg(noise, quality=80, colorsubsampling=subsampling)
    whole = simplejpeg.decode_jpeg(stream)
    for _ in range(300):
        top, left = (int(value) for value in RNG.integers(0, (128, 160)))
        height, width = (int(value) for value in RNG.integers(1, (129 - top, 161 - left)))
        window = Window(row=top, column=left, height=height, width=width)
        part = cropper.decode(stream, window, across=160, unit=unit)
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr", "minisblack", "miniswhite"])
def test_parts_of_jpeg_tiles_have_the_colours_of_the_whole(tmp_path: Path, photometric: str) -> None:
    image = RNG.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    arguments = {"level": 80, "outcolorspace": photometric} if photometric in ("rgb", "ycbcr") else {"level": 80}
    path = write_tiff(
        tmp_path / "a.tif",
        image if photometric in ("rgb", "ycbcr") else image[..., 0],
        tile=(128, 128),
        compression="jpeg",
        compressionargs=arguments,
        photometric=photometric,
    )
    with Slide.open(path) as slide:
        whole = slide.read_window(0, Window(row=0, column=0, height=128, width=128))
        np.testing.assert_array_equal(whole, through_openslide(path))
    for top, left in ((0, 0), (3, 50), (64, 17), (90, 90)):
        with Slide.open(path) as fresh:  # the first look at a tile decodes the part
            part = fresh.read_window(0, Window(row=top, column=left, height=30, width=38))
        np.testing.assert_array_equal(part, whole[top : top + 30, left : left + 38])


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_windows_equal_the_whole(plain: Path, decoder: str, data: st.DataObject) -> None:
    del decoder
    level = data.draw(st.integers(0, 2))
    with Slide.open(plain) as slide:
        size = slide.levels[level]
        whole = slide.read_window(level, Window.whole(size.shape))
        np.testing.assert_array_equal(whole, through_openslide(plain, level))
        outside = np.pad(whole, ((600, 600), (600, 600), (0, 0)), constant_values=255)
        for _ in range(data.draw(st.integers(1, 4))):  # the second look at a tile takes another way than the first
            row, column = data.draw(st.integers(-90, 430)), data.draw(st.integers(-90, 510))
            height, width = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 200))
            part = slide.read_window(level, Window(row=row, column=column, height=height, width=width))
            wanted = outside[row + 600 : row + 600 + height, column + 600 : column + 600 + width]
            np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize("level", [-1, 9])
def test_a_level_that_does_not_exist_is_named(plain: Path, level: int) -> None:
    region = Region(x=0, y=0, width=8, height=8)
    with Slide.open(plain) as slide:
        for read in (
            lambda: slide.frame_of(level),
            lambda: slide.read(region, level=level),
            lambda: slide.read_many([region], level=level),
            lambda: slide.to_dask(level),
        ):
            with pytest.raises(IndexError, match=f"has levels 0 to .*, not {level}"):
                read()


def test_out_is_filled_and_checked(plain: Path) -> None:
    region = Region(x=30, y=40, width=100, height=80)
    with Slide.open(plain) as slide:
        out = np.zeros((80, 100, 3), dtype=np.uint8)
        image = slide.read(region, out=out)
        assert image.array is out
        np.testing.assert_array_equal(out, slide.read(region).array)
        strided = np.zeros((80, 200, 3), dtype=np.uint8)[:, ::2]
        slide.read(region, out=strided)
        np.testing.assert_array_equal(strided, out)
        with pytest.raises(ValueError, match=r"out must be uint8 \(80, 100, 3\)"):
            slide.read(region, out=out[:-1])
        with pytest.raises(ValueError, match="float32"):
            slide.read(region, out=out.astype(np.float32))


# --- many regions ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_regions_equal_one_by_one(plain: Path, decoder: str, data: st.DataObject) -> None:
    del decoder
    level, workers = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 3))
    side = data.draw(st.integers(1, 150)) * 4
    corners = data.draw(st.lists(st.tuples(st.integers(-40, 130), st.integers(-40, 110)), min_size=1, max_size=30))
    regions = [Region(x=x * 4, y=y * 4, width=side, height=side) for x, y in corners]
    with Slide.open(plain) as slide:
        many = slide.read_many(regions, level, workers=workers)
        for region, array in zip(regions, many, strict=True):
            np.testing.assert_array_equal(array, slide.read(region, level).array)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each tile, by its stored bytes, was decoded whole or in part."""
    counts: Counter[bytes] = Counter()
    whole, part = jpeg.JpegTiles.decode, jpeg.JpegTiles.decode_window

    def count_whole(self: jpeg.JpegTiles, data: bytes, out: NDArray[np.uint8]) -> None:
        counts[data] += 1
        whole(self, data, out)

    def count_part(self: jpeg.JpegTiles, data: bytes, window: Window) -> NDArray[np.uint8] | None:
        pixels = part(self, data, window)
        counts[data] += pixels is not None
        return pixels

    monkeypatch.setattr(jpeg.JpegTiles, "decode", count_whole)
    monkeypatch.setattr(jpeg.JpegTiles, "decode_window", count_part)
    return counts


@pytest.mark.parametrize("workers", [1, 2])
def test_many_regions_decode_each_tile_once(plain: Path, decoder: str, decoded: Counter[bytes], workers: int) -> None:
    del decoder
    corners = RNG.integers((-50, -50), (480, 400), (200, 2)).tolist()
    regions = [Region(x=x, y=y, width=90, height=90) for x, y in corners]
    with Slide.open(plain) as slide:
        slide.read_many(regions, workers=workers)
    assert len(decoded) > 40
    assert set(decoded.values()) == {1}


def test_a_tile_wanted_again_and_again_is_decoded_twice_at_most(plain: Path, decoded: Counter[bytes]) -> None:
    with Slide.open(plain) as slide:
        for x in range(70, 400, 7):
            slide.read(Region(x=x, y=70, width=30, height=30))
    assert max(decoded.values()) <= 2


@pytest.mark.parametrize(("again", "decodings"), [(22, 2), (23, 1)])
def test_where_most_parts_come_again_a_new_tile_is_decoded_whole_at_once(
    plain: Path, decoded: Counter[bytes], again: int, decodings: int
) -> None:
    """Of the last 32 parts, the older ones counting less: 1 - (31/32)**23 of the parts, times 31/32 for the new one."""
    needs_turbo()
    with Slide.open(plain) as slide:
        for x in range(70, 71 + again):
            slide.read(Region(x=x, y=70, width=9, height=9))
        assert list(decoded.values()) == [2]  # a part, then the whole
        decoded.clear()
        for x in (200, 210, 220):
            slide.read(Region(x=x, y=70, width=9, height=9))
    assert list(decoded.values()) == [decodings]


def test_tiles_are_fetched_together_and_those_at_hand_not_at_all(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_turbo()
    fetched: list[int] = []
    many = FileSource.read_many

    def counted(self: FileSource, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        fetched.append(len(ranges))
        return many(self, ranges)

    def one(self: FileSource, offset: int, count: int) -> bytes:
        raise AssertionError((self, offset, count))

    with Slide.open(plain) as slide:
        monkeypatch.setattr(FileSource, "read_many", counted)
        monkeypatch.setattr(FileSource, "read", one)
        for part in range(3):  # a part, then the whole, which is kept
            slide.read(Region(x=70 + part, y=70, width=100, height=30))
    assert fetched == [2, 2]


def test_a_tile_wanted_whole_is_not_kept(plain: Path, decoded: Counter[bytes]) -> None:
    with Slide.open(plain) as slide:
        for _ in range(2):
            slide.read(Region(x=64, y=64, width=64, height=192))
            slide.read(Region(x=192, y=64, width=128, height=64))
    assert sorted(decoded.values()) == [2] * 5


def test_the_values_used_last_are_kept_up_to_the_limit() -> None:
    recent: _Recent[str] = _Recent(10)
    for key in "ab":
        recent.put(key, key.upper(), 5)
    assert (recent.get("a"), recent.get("x")) == ("A", None)
    recent.put("a", "another", 5)
    recent.put("c", "C", 1)
    assert ["b" in recent, recent.get("a"), recent.get("c")] == [False, "A", "C"]
    recent.put("too large", "-", 11)
    assert "too large" not in recent
    recent.put("all", "-", 10)
    assert [key in recent for key in ("a", "c", "all")] == [False, False, True]


def test_many_regions_of_other_readers(tmp_path: Path) -> None:
    image = picture(90, 120)
    path = tmp_path / "photo.png"
    Pillow.fromarray(image).save(path)
    with Slide.open(path) as slide:
        regions = [Region(x=x, y=5, width=20, height=30) for x in range(-10, 110, 15)]
        many = slide.read_many(regions)
        padded = np.pad(image, ((0, 0), (10, 50), (0, 0)), constant_values=255)
        for region, array in zip(regions, many, strict=True):
            np.testing.assert_array_equal(array, padded[5:35, region.x + 10 : region.x + 30])


def test_many_regions_that_do_not_fit(plain: Path) -> None:
    with Slide.open(plain) as slide:
        with pytest.raises(ValueError, match="at least one region"):
            slide.read_many([])
        two = [Region(x=0, y=0, width=9, height=9), Region(x=0, y=0, width=9, height=8)]
        with pytest.raises(ValueError, match="differ in size: 9 x 9 and 9 x 8 px"):
            slide.read_many(two)


def test_tile_order_keeps_neighbours_together(plain: Path) -> None:
    regions = [Region(x=x, y=y, width=40, height=40) for x in range(0, 480, 20) for y in range(0, 400, 20)]
    shuffled = [regions[index] for index in RNG.permutation(len(regions))]
    with Slide.open(plain) as slide:
        level = slide.levels[0]
        order = tile_order(shuffled, level)
        assert sorted(order.tolist()) == list(range(len(regions)))

        def tiles(some: list[Region]) -> int:
            touched = {
                (y // 64, x // 64)
                for region in some
                for y in (region.y, region.bottom - 1)
                for x in (region.x, region.right - 1)
            }
            return len(touched)

        batches = [[shuffled[index] for index in order[start : start + 60]] for start in range(0, len(order), 60)]
        random = [shuffled[start : start + 60] for start in range(0, len(shuffled), 60)]
        assert sum(map(tiles, batches)) < 0.5 * sum(map(tiles, random))


# --- raw tiles ------------------------------------------------------------------------------------------------------


# tables of RGB tiles are written by no writer at hand
@pytest.mark.parametrize(("photometric", "with_tables"), [("rgb", False), ("ycbcr", False), ("ycbcr", True)])
def test_tile_bytes_show_the_right_colours_anywhere(tmp_path: Path, photometric: str, with_tables: bool) -> None:  # noqa: FBT001
    image = picture(192, 192)
    if with_tables:
        path = tmp_path / "a.tif"
        tiles = [image[row : row + 64, column : column + 64] for row in (0, 64, 128) for column in (0, 64, 128)]
        write_pyramid(path, width=192, height=192, mpp=None, tile_size=64, levels=1, tiles=tiles)
    else:
        path = write_tiff(
            tmp_path / "a.tif",
            image,
            compression="jpeg",
            photometric=photometric,
            compressionargs={"level": 90, "outcolorspace": photometric},
        )
    with Slide.open(path) as slide:
        for row, column in np.ndindex(3, 3):
            stream = slide.tile_bytes(0, row, column)
            assert stream is not None
            wanted = slide.read_window(0, Window(row=row * 64, column=column * 64, height=64, width=64))
            np.testing.assert_array_equal(np.asarray(Pillow.open(io.BytesIO(stream)).convert("RGB")), wanted)


def test_tile_bytes_of_missing_absent_and_other_tiles(plain: Path, tmp_path: Path) -> None:
    with Slide.open(plain) as slide:
        assert slide.tile_bytes(0, 0, 1) is None
        with pytest.raises(ValueError, match="no tile in row 7, column 0"):
            slide.tile_bytes(0, 7, 0)
    path = write_tiff(tmp_path / "a.tif", picture(), compression="lzw")
    with Slide.open(path) as slide, pytest.raises(ValueError, match="not JPEG"):
        slide.tile_bytes(0, 0, 0)
    Pillow.fromarray(picture()).save(tmp_path / "a.png")
    with Slide.open(tmp_path / "a.png") as slide:
        assert slide.stored_tiles(0) is None
        with pytest.raises(ValueError, match="png has no JPEG tiles"):
            slide.tile_bytes(0, 0, 0)


def test_tile_bytes_carry_no_comments(real_data: RealData) -> None:
    with Slide.open(real_data("slides/CMU-1-Small-Region.svs")) as slide:
        stream = slide.tile_bytes(0, 3, 4)
        assert stream is not None
        opened = Pillow.open(io.BytesIO(stream))
        assert "comment" not in opened.info
        assert opened.size == (240, 240)


def test_stored_tiles_are_the_bytes_of_the_file(plain: Path) -> None:
    with Slide.open(plain) as slide, tifffile.TiffFile(plain) as oracle:
        page = oracle.pages[1]
        assert isinstance(page, tifffile.TiffPage)
        stored = slide.stored_tiles(1)
        assert stored is not None
        assert (stored.rows, stored.columns) == (4, 4)
        assert (stored.compression, stored.photometric, stored.samples) == (7, 6, 3)
        assert stored.subsampling == (2, 2)
        assert stored.jpeg_tables == page.jpegtables
        raw = plain.read_bytes()
        for index, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            wanted = raw[offset : offset + count] if count else None
            assert stored.read(*divmod(index, 4)) == wanted


# --- lazy arrays ----------------------------------------------------------------------------------------------------


def computed(lazy: Any, **options: Any) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = lazy.compute(**options)
    return array


@pytest.mark.parametrize("level", [0, 1])
def test_a_lazy_level_equals_the_level(plain: Path, level: int) -> None:
    with Slide.open(plain) as slide:
        lazy = slide.to_dask(level, tiles_per_chunk=2)
        size = slide.levels[level]
        assert lazy.shape == (size.height, size.width, 3)
        assert lazy.chunks[0][0] == lazy.chunks[1][0] == 128
        wanted = slide.read_window(level, Window.whole(size.shape))
    np.testing.assert_array_equal(computed(lazy, scheduler="threads"), wanted)  # also after the slide was closed
    np.testing.assert_array_equal(computed(lazy[100:140, 60:200], scheduler="synchronous"), wanted[100:140, 60:200])


@pytest.mark.slow
def test_a_lazy_level_travels_as_a_path(plain: Path) -> None:
    with Slide.open(plain) as slide:
        lazy = slide.to_dask(0, tiles_per_chunk=1)
        wanted = slide.read_window(0, Window(row=64, column=128, height=64, width=64))
    assert len(pickle.dumps(lazy)) < 20_000
    with dask.config.set({"multiprocessing.context": "spawn"}):
        block = computed(lazy.blocks[1, 2], scheduler="processes", num_workers=1)
    np.testing.assert_array_equal(block, wanted)


def test_a_replaced_file_is_read_anew(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(plain.read_bytes())
    before = computed(Slide(path).to_dask(0), scheduler="synchronous")
    write_tiff(tmp_path / "b.tif", picture(64, 64), compression="lzw").replace(path)
    after = computed(Slide(path).to_dask(0), scheduler="synchronous")
    assert before.shape != after.shape
    np.testing.assert_array_equal(after, tifffile.imread(path))


def test_a_chunk_needs_a_tile(plain: Path) -> None:
    with Slide.open(plain) as slide, pytest.raises(ValueError, match="at least one tile"):
        slide.to_dask(tiles_per_chunk=0)


def _sum_of(slide: Slide, answers: Any) -> None:
    answers.put(int(slide.read_window(0, Window(row=0, column=0, height=300, width=300)).sum()))


def test_a_slide_survives_a_fork(plain: Path) -> None:
    context = multiprocessing.get_context("fork")
    with Slide.open(plain) as slide:
        wanted = int(slide.read_window(0, Window(row=0, column=0, height=300, width=300)).sum())
        answers = context.Queue()
        child = context.Process(target=_sum_of, args=(slide, answers))
        child.start()
        assert answers.get(timeout=60) == wanted
        child.join()


# --- reduced tiles --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("downsample", "x", "is_reduced"),
    [
        (2.0, 0, True),
        (4.0, 8, True),
        (8.0, -16, True),
        (24.0, 0, True),
        (13.0, 3, True),
        (33.0, 5, True),
        (2.0, 1, False),
        (3.3, 0, False),
        (1.5, 0, False),
    ],
)
def test_reduced_decoding_stays_near_the_exact_mean(
    real_data: RealData,
    downsample: float,
    x: float,
    is_reduced: bool,  # noqa: FBT001
) -> None:
    with Slide.open(real_data("slides/CMU-1-Small-Region.svs")) as slide:
        shape = int(2967 / downsample), int(2220 / downsample)
        frame = Frame(x=x, y=-x, downsample=downsample, shape=shape, mpp=slide.mpp)
        exact = slide.read_frame(frame).array.astype(np.int16)
        quick = slide.read_frame(frame, exact=False).array.astype(np.int16)
    error = np.abs(quick - exact)
    assert error.any() == is_reduced
    assert error.mean() < 1.5
    assert np.quantile(error, 0.99) <= 6
    assert abs((quick - exact).mean()) < 0.2


def test_reduced_decoding_reads_missing_and_outside_as_white(plain: Path) -> None:
    with Slide.open(plain) as slide:
        frame = Frame(x=-64, y=-64, downsample=2.0, shape=(260, 300), mpp=None)
        exact = slide.read_frame(frame).array
        quick = slide.read_frame(frame, exact=False).array
    far = exact[:20, :20]
    assert (far == 255).all()
    assert (quick[:20, :20] == 255).all()
    assert np.abs(quick.astype(int) - exact).mean() < 4  # half of the picture is noise, where the error is largest


def test_exact_is_exact_where_tiles_cannot_be_reduced(tmp_path: Path) -> None:
    with Slide.open(write_tiff(tmp_path / "a.tif", picture(), compression="lzw")) as slide:
        frame = Frame(x=0, y=0, downsample=4.0, shape=(50, 75), mpp=None)
        np.testing.assert_array_equal(slide.read_frame(frame, exact=False).array, slide.read_frame(frame).array)
