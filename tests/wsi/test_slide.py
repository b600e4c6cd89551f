"""Slides: which reader, pixels at any resolution, processes and threads, one clear error each."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pillow

from wsi.errors import ResolutionError, SlideError, SlideFormatError, SlideNotFoundError, TileError
from wsi.geometry import Frame, Region, Window
from wsi.readers.resolution import OverridingMpp
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

RealData = Callable[[str], Path]
RNG = np.random.default_rng(11)
IMAGE = RNG.integers(0, 256, (230, 310, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IMAGE and its half, 0.25 um/px."""
    path = tmp_path_factory.mktemp("slide") / "noise.tif"
    half = (IMAGE.reshape(115, 2, 155, 2, 3).astype(int).sum(axis=(1, 3)) + 2) // 4
    with tifffile.TiffWriter(path) as tiff:
        for index, image in enumerate((IMAGE, half.astype(np.uint8))):
            tiff.write(
                image,
                tile=(64, 64),
                photometric="rgb",
                compression="zlib",
                subfiletype=index,
                resolution=(40_000 / 2**index, 40_000 / 2**index),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def exact_mean(image: NDArray[np.uint8], frame: Frame) -> NDArray[np.float64]:
    """Area means from running sums over the image with a white border, in float64."""
    border = 60 + int(max(frame.shape) * frame.downsample)
    padded = np.pad(image.astype(np.float64), ((border, border), (border, border), (0, 0)), constant_values=255)
    for axis in (0, 1):
        sums = np.insert(np.cumsum(padded, axis=axis), 0, 0, axis=axis)
        start = (frame.y, frame.x)[axis] + border
        edges = start + np.arange(frame.shape[axis] + 1) * frame.downsample
        low = np.floor(edges).astype(int)
        share = (edges - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        at = np.take(sums, low, axis=axis) * (1 - share) + np.take(sums, low + 1, axis=axis) * share
        padded = np.diff(at, axis=axis) / frame.downsample
    return padded


# --- pixels at any resolution ---------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-40, 300) | st.integers(-40, 300).map(float),
    y=st.floats(-40, 220) | st.integers(-40, 220).map(float),
    downsample=st.floats(0.3, 1.99) | st.sampled_from([1.0, 1.1, 0.5]),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_a_frame_is_the_mean_of_level_0(
    lossless: Path, x: float, y: float, downsample: float, shape: tuple[int, int]
) -> None:
    frame = Frame(x=x, y=y, downsample=downsample, shape=shape, mpp=0.25)
    with Slide.open(lossless) as slide:
        image = slide.read_frame(frame)
    assert image.frame == frame
    assert np.abs(image.array - exact_mean(IMAGE, frame)).max() < 0.52


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(downsample=st.floats(2, 40) | st.sampled_from([2.0, 4.0, 6.0, 32.0]), x=st.integers(-9, 60).map(float))
def test_a_coarse_frame_comes_from_the_coarse_level(lossless: Path, downsample: float, x: float) -> None:
    frame = Frame(x=x, y=-3.0, downsample=downsample, shape=(7, 6), mpp=0.25)
    with Slide.open(lossless) as slide:
        # Each stored pixel of the half stands for 2 x 2 equal ones.
        half = slide.read_frame(slide.frame_of(1)).array.repeat(2, axis=0).repeat(2, axis=1)
        assert np.abs(slide.read_frame(frame).array - exact_mean(half, frame)).max() < 0.52


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-40, 100) | st.integers(-40, 100).map(float),
    downsample=st.floats(0.4, 7) | st.sampled_from([1.0, 2.0, 4.0, 1.1, 0.5 / 0.243, 1.0 / 0.226]),
    window=st.tuples(st.integers(0, 29), st.integers(0, 39), st.integers(1, 30), st.integers(1, 40)),
)
def test_windows_equal_the_whole_bit_for_bit(
    lossless: Path, x: float, downsample: float, window: tuple[int, int, int, int]
) -> None:
    frame = Frame(x=x, y=x / 3, downsample=downsample, shape=(30, 40), mpp=0.25)
    row, column, height, width = window[0], window[1], min(window[2], 30 - window[0]), min(window[3], 40 - window[1])
    with Slide.open(lossless) as slide:
        image = slide.read_frame(frame).array
        part = slide.read_frame(frame.part(Window(row=row, column=column, height=height, width=width))).array
    np.testing.assert_array_equal(part, image[row : row + height, column : column + width])


@pytest.mark.parametrize("downsample", [1.0, 1.3, 2.0, 5.7])
def test_large_frames_are_read_in_blocks_with_equal_result(
    lossless: Path, monkeypatch: pytest.MonkeyPatch, downsample: float
) -> None:
    with Slide.open(lossless) as slide:
        frame = Frame(x=-10, y=-20, downsample=downsample, shape=(int(260 / downsample), 71), mpp=None)
        at_once = slide.read_frame(frame).array
        monkeypatch.setattr("wsi.readers.level_pixels._BLOCK_BYTES", 3 * 37**2)
        asked: list[int] = []
        reader = slide._open()
        read = reader.read

        def spy(level: int, window: Window, *, out: NDArray[np.uint8]) -> None:
            asked.append(len(out))
            read(level, window, out=out)

        monkeypatch.setattr(reader, "read", spy)
        np.testing.assert_array_equal(slide.read_frame(frame).array, at_once)
    assert len(asked) > 4
    assert max(asked) <= 39


def test_stored_levels_pass_through(lossless: Path) -> None:
    with Slide.open(lossless) as slide:
        np.testing.assert_array_equal(slide.read_frame(slide.frame).array, IMAGE)
        with tifffile.TiffFile(lossless) as tiff:
            half = tiff.pages[1].asarray()
        np.testing.assert_array_equal(slide.read_frame(slide.frame_of(1)).array, half)
        np.testing.assert_array_equal(slide.read_at(0.5).array, half)


def test_read_gives_stored_pixels_under_a_region(lossless: Path) -> None:
    region = Region(x=101, y=51, width=20, height=11)
    with Slide.open(lossless) as slide:
        np.testing.assert_array_equal(slide.read(region).array, IMAGE[51:62, 101:121])
        image = slide.read(region, level=1)
        assert image.frame == Frame(x=100, y=50, downsample=2, shape=(6, 11), mpp=slide.mpp)
        np.testing.assert_array_equal(image.array, slide.read_frame(slide.frame_of(1)).array[25:31, 50:61])
        outside = slide.read(Region(x=-50, y=-50, width=60, height=60)).array
        assert (outside[:50] == 255).all()
        np.testing.assert_array_equal(outside[50:, 50:], IMAGE[:10, :10])


def test_read_at_covers_the_region_on_the_whole_slides_grid(lossless: Path) -> None:
    with Slide.open(lossless) as slide:
        frame = slide.frame_at(0.8)
        assert frame.shape == (72, 97)  # 230 and 310 px of 0.25 um, rounded up
        image = slide.read_at(0.8, Region(x=33, y=70, width=50, height=40))
        np.testing.assert_array_equal(image.array, slide.read_frame(frame).array[21:35, 10:26])


def test_frame_at_its_own_resolution_is_the_slide(lossless: Path) -> None:
    for mpp in (0.243, 0.226, 1 / 3):
        with Slide.open(lossless, mpp=OverridingMpp(mpp)) as slide:
            assert slide.frame_at(mpp) == slide.frame
            assert slide.frame_at(2 * mpp).shape == (115, 155)
            assert slide.frame_at(3 * mpp).shape == (77, 104)


def test_missing_areas(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    tile = np.zeros((64, 64, 3), dtype=np.uint8)
    tiles = [None] * 15 + [tile]
    write_pyramid(path, width=256, height=256, mpp=0.25, tile_size=64, tiles=tiles, philips=True)
    with Slide.open(path) as slide:
        for downsample in (1.0, 1.7, 2.0):
            cells = Frame(x=0, y=0, downsample=downsample, shape=(64, 64), mpp=None)
            assert slide.is_missing(cells)
            corner = int(180 / downsample)  # the only stored tile begins at 192
            assert not slide.is_missing(cells.part(Window(row=corner, column=corner, height=64, width=64)))
        assert slide.is_missing(Frame(x=300, y=0, downsample=1, shape=(10, 900), mpp=None))
        assert (slide.read_frame(slide.frame).array[:192] == 255).all()


# --- resolution -----------------------------------------------------------------------------------------------------


def test_an_unknown_resolution_refuses_um_until_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pillow.fromarray(IMAGE).save(path)
    with Slide.open(path) as slide:
        assert slide.mpp is None
        assert slide.frame.mpp is None
        with pytest.raises(ResolutionError, match=r"a\.png: does not say .*--slide-mpp"):
            slide.frame_at(1.0)
    with Slide.open(path, mpp=0.5) as slide:
        assert slide.mpp == 0.5
        assert slide.frame_at(1.0).shape == (115, 155)


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_mpp_is_refused(lossless: Path, mpp: float) -> None:
    for one in (mpp, OverridingMpp(mpp)):
        with pytest.raises(ValueError, match="mpp is um per level-0 px"):
            Slide.open(lossless, mpp=one)


# --- which reader, which error --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "levels"),
    [
        ("CMU-1-Small-Region.svs", "aperio", 1),
        ("small.svs", "aperio", 1),
        ("boxes.tiff", "tiff", 4),
        ("asap_mask_864x800.tif", "tiff", 2),
        ("boxes_0.dcm", "dicom", 1),
    ],
)
def test_real_slides_open(real_data: RealData, name: str, kind: str, levels: int) -> None:
    with Slide.open(real_data(f"slides/{name}")) as slide:
        assert slide.properties["sentinode.format"] == kind
        assert len(slide.levels) == levels
        assert slide.name == Path(name).stem
        array = slide.read_frame(slide.frame).array
        assert array.shape == (*slide.levels[0].shape, 3)
        assert array.min() < array.max()


def test_a_real_photograph_opens(real_data: RealData) -> None:
    with Slide.open(real_data("centres/centre_0_patient_006_node_1.jpeg")) as slide:
        assert slide.properties["sentinode.format"] == "jpeg"
        assert slide.read_frame(slide.frame).array.shape == (2048, 2048, 3)


def test_an_unopenable_slide_is_one_format_error(real_data: RealData) -> None:
    with pytest.raises(SlideFormatError, match=r"unopenable\.tiff: .*compression"):
        Slide.open(real_data("slides/unopenable.tiff"))


def test_an_unreadable_slide_is_one_tile_error(real_data: RealData) -> None:
    with (
        Slide.open(real_data("slides/unreadable.svs")) as slide,
        pytest.raises(TileError, match=r"unreadable\.svs, level 0, tile row 0, tile column 0"),
    ):
        slide.read_frame(slide.frame)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SlideNotFoundError, match="no such file"):
        Slide.open(tmp_path / "none.tif")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello, I am no slide", "not a slide of a known kind"),
        (bytes(4096), "not a slide of a known kind"),
        (b"II*\0", "truncated"),
        (b"II*\0\x08\0\0\0\0\0", "directory of 0 entries"),
        (b"II*\0\0\0\0\0", "no image at all"),
        (b"\x89PNG\r\n\x1a\n garbage", "cannot be opened as a picture"),
        (b"\xff\xd8\xff garbage", "cannot be opened as a picture"),
    ],
)
def test_what_is_no_slide_is_one_format_error(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.tif"
    path.write_bytes(content)
    with pytest.raises(SlideFormatError, match=rf"bad\.tif.*{reason}"):
        Slide.open(path)


def test_a_directory_is_no_slide(tmp_path: Path) -> None:
    with pytest.raises(SlideFormatError, match="is a directory without DICOM files, not a slide"):
        Slide.open(tmp_path)


def test_sixteen_bits_and_strips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE.astype(np.uint16), tile=(64, 64), photometric="rgb")
    with pytest.raises(SlideFormatError, match="16 bits"):
        Slide.open(path)
    tifffile.imwrite(path, IMAGE, photometric="rgb")
    with pytest.raises(SlideFormatError, match=r"a\.tif"):
        Slide.open(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_truncated_downloads_are_refused_on_opening(lossless: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.tif"
    data = lossless.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideFormatError, match=r"cut\.tif.*truncated.*checksum"):
        Slide.open(path)


# --- processes, threads, life -----------------------------------------------------------------------------------------


def test_pickles_as_path_and_options(lossless: Path, tmp_path: Path) -> None:
    slide = Slide.open(lossless, mpp=OverridingMpp(0.4))
    data = pickle.dumps(slide)
    assert len(data) < 500
    copy = pickle.loads(data)  # noqa: S301 - our own bytes
    assert copy._reader is None
    assert (copy.path, copy.mpp) == (slide.path, 0.4)
    np.testing.assert_array_equal(copy.read_frame(copy.frame).array, IMAGE)
    copy.close()
    # A slide may be made where its file is not yet: the first use opens it.
    gone = pickle.loads(pickle.dumps(Slide(tmp_path / "none.tif")))  # noqa: S301 - our own bytes
    with pytest.raises(SlideNotFoundError):
        _ = gone.levels


def test_threads_share_a_slide(lossless: Path) -> None:
    with Slide.open(lossless) as slide:
        frames = [
            slide.frame.part(Window(row=int(row), column=int(column), height=50, width=60))
            for row, column in RNG.integers(0, (180, 250), (200, 2))
        ]
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(slide.read_frame, frames))
    for image in images:
        row, column = int(image.frame.y), int(image.frame.x)
        np.testing.assert_array_equal(image.array, IMAGE[row : row + 50, column : column + 60])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_opens_its_own_handle(lossless: Path) -> None:
    slide = Slide.open(lossless)
    parent = slide._open()
    slide._lock.acquire()  # as if another thread of the parent held it at the fork

    def child() -> None:
        good = np.array_equal(slide.read_frame(slide.frame).array, IMAGE) and slide._open() is not parent
        os._exit(0 if good else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads beside a fork
        process.start()
    process.join(20)
    slide._lock.release()
    assert process.exitcode == 0
    slide.close()


def test_a_closed_slide_says_so(lossless: Path) -> None:
    slide = Slide.open(lossless)
    slide.close()
    slide.close()
    with pytest.raises(ValueError, match="closed"):
        _ = slide.levels


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_handles_are_given_back(lossless: Path) -> None:
    def handles() -> int:
        return sum(link.exists() and link.samefile(lossless) for link in Path("/proc/self/fd").iterdir())

    before = handles()
    with Slide.open(lossless) as slide:
        assert handles() == before + 1
        slide.read_frame(slide.frame)
    assert handles() == before
    dropped = Slide.open(lossless)
    del dropped
    assert handles() == before


def test_fingerprints_tell_slides_apart(lossless: Path, tmp_path: Path) -> None:
    copy = tmp_path / "renamed.tif"
    data = bytearray(lossless.read_bytes())
    copy.write_bytes(data)
    assert Slide(copy).fingerprint() == Slide(lossless).fingerprint()
    assert len(Slide(copy).fingerprint()) == 64
    data[-1] ^= 1
    copy.write_bytes(data)
    assert Slide(copy).fingerprint() != Slide(lossless).fingerprint()
    copy.write_bytes(bytes(5 * 2**20))
    large = Slide(copy).fingerprint()
    copy.write_bytes(bytes(5 * 2**20 + 1))
    assert Slide(copy).fingerprint() != large
    with pytest.raises(SlideNotFoundError):
        Slide(tmp_path / "none.tif").fingerprint()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_a_slide_error(lossless: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.tif"
    path.write_bytes(lossless.read_bytes())
    path.chmod(0)
    with pytest.raises(SlideError, match=r"secret\.tif: cannot be read"):
        Slide.open(path)


@pytest.mark.slow
def test_importing_is_quick() -> None:
    code = (
        "import wsi.slide, wsi.writing.pyramid, sys; print([m for m in ('torch', 'scipy', 'dask') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_fingerprint_sees_the_first_and_the_last_mib_of_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    data = bytearray(np.random.default_rng(0).bytes(5 * 2**20))

    def fingerprint(changed: int | None = None) -> str:
        copy = bytearray(data)
        if changed is not None:
            copy[changed] ^= 1
        path.write_bytes(copy)
        return Slide(path).fingerprint()

    for changed in (0, 2**20 - 1, 4 * 2**20, 5 * 2**20 - 1):
        assert fingerprint(changed) != fingerprint(), changed
    for changed in (2**20, 4 * 2**20 - 1):  # it is no checksum of the whole file
        assert fingerprint(changed) == fingerprint(), changed
