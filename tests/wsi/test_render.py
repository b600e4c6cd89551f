from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from wsi.errors import OutputNameError, StorageError
from wsi.geometry import Frame, Window
from wsi.raster import Heatmap, Image, Mask
from wsi.render import overlay, save_picture, save_png, thumbnail
from wsi.slide import Slide

PINK = (200, 120, 170)


def picture(shape: tuple[int, int], *, downsample: float, mpp: float | None = 0.25) -> Image:
    frame = Frame(x=0, y=0, downsample=downsample, shape=shape, mpp=mpp)
    return Image(frame=frame, array=np.full((*shape, 3), PINK, dtype=np.uint8))


def heatmap_of(values: NDArray[np.floating], *, x: float = 0.0, y: float = 0.0) -> Heatmap:
    frame = Frame(x=x, y=y, downsample=64.0, shape=values.shape, mpp=0.25)
    return Heatmap(frame=frame, array=values.astype(np.float32), tissue=np.ones(values.shape, dtype=bool))


def changed(drawn: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray((drawn[: shape[0], : shape[1]] != PINK).any(axis=2))


def test_the_picture_keeps_its_place_and_gets_a_strip() -> None:
    drawn = overlay(picture((300, 640), downsample=32), heatmap_of(np.zeros((150, 320))), threshold=0.5)
    assert drawn.shape == (352, 640, 3)
    assert drawn.dtype == np.uint8
    assert not changed(drawn, (300, 640)).any()
    assert (drawn[300:] == 255).mean() > 0.5
    assert (drawn[300:] < 60).any()


def test_nothing_is_painted_on_faint_cells() -> None:
    drawn = overlay(picture((300, 640), downsample=32), heatmap_of(np.full((150, 320), 0.1)), threshold=0.5)
    assert not changed(drawn, (300, 640)).any()


def test_colour_and_opacity_grow_with_probability() -> None:
    values = np.repeat(np.linspace(0, 1, 21), 16)[np.newaxis].repeat(150, axis=0)
    drawn = overlay(picture((300, 672), downsample=32), heatmap_of(values), threshold=0.99)
    centres = drawn[150, 16:672:32].astype(float)
    distance = np.abs(centres - PINK).sum(axis=1)
    assert (distance[:3] == 0).all()
    assert (distance[4:] > 0).all()
    lightness = centres[4:-1] @ [0.2126, 0.7152, 0.0722]
    assert distance[-2] > distance[10] > distance[4]
    assert lightness[-1] < lightness.max()


def test_the_line_runs_around_what_reaches_the_threshold() -> None:
    values = np.zeros((100, 200))
    values[40:60, 80:120] = 0.9
    drawn = overlay(picture((100, 200), downsample=64), heatmap_of(values), threshold=0.5)[:100, :200]
    line = (drawn == 20).all(axis=2)
    expected = np.zeros_like(line)
    expected[39:61, 79:121] = True
    expected[40:60, 80:120] = False
    np.testing.assert_array_equal(line, expected)


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (640.0, 1280.0)])
def test_probabilities_are_drawn_where_they_lie_on_the_slide(x: float, y: float) -> None:
    values = np.zeros((50, 80))
    values[10:20, 30:50] = 1.0
    drawn = overlay(picture((400, 600), downsample=16), heatmap_of(values, x=x, y=y), threshold=0.5)
    rows, columns = np.nonzero(changed(drawn, (400, 600)))
    top, left = (y + 10 * 64) / 16, (x + 30 * 64) / 16
    assert abs(rows.min() - top) <= 4
    assert abs(columns.min() - left) <= 4
    assert abs(rows.max() + 1 - (top + 40)) <= 4
    assert abs(columns.max() + 1 - (left + 80)) <= 4


def test_a_single_cell_shows_on_a_coarse_picture() -> None:
    for where in range(20):
        values = np.zeros((400, 400))
        values[100 + where, 200 + 3 * where % 17] = 0.9
        drawn = overlay(picture((40, 40), downsample=640), heatmap_of(values), threshold=0.5)
        assert changed(drawn, (40, 40)).sum() == 9


def test_outlines_are_drawn_in_red() -> None:
    heatmap = heatmap_of(np.zeros((50, 50)))
    mask = Mask(
        frame=heatmap.frame.part(Window(row=20, column=10, height=4, width=6)), array=np.ones((4, 6), dtype=bool)
    )
    drawn = overlay(picture((50, 50), downsample=64), heatmap, threshold=0.5, outlines=[mask])
    red = changed(drawn, (50, 50))
    assert not red[20:24, 10:16].any()
    assert red[18:20, 8:18].all()
    assert red.sum() == 8 * 10 - 4 * 6


def test_the_scale_bar_is_as_long_as_it_says() -> None:
    drawn = overlay(picture((100, 800), downsample=64), heatmap_of(np.zeros((100, 800))), threshold=0.5)
    middle = 100 + 52 // 2
    bar = np.flatnonzero((drawn[middle, :400] == 40).all(axis=1))
    run = bar[: np.flatnonzero(np.diff(bar, append=10**6) > 1)[0] + 1]
    assert run.size == round(2000 / 16)


@pytest.mark.parametrize("mpp", [None, 0.25])
def test_small_pictures_without_scale_and_odd_thresholds(mpp: float | None) -> None:
    for threshold in (0.05, 0.5, 1.0):
        drawn = overlay(picture((30, 20), downsample=8, mpp=mpp), heatmap_of(np.ones((4, 4))), threshold=threshold)
        assert drawn.shape == (82, 560, 3)
        assert (drawn[:30, 20:] == 255).all()


def test_save_png(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    colour = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    save_png(tmp_path / "new" / "a.png", colour)
    save_png(tmp_path / "new" / "b.png", colour[..., 0])
    np.testing.assert_array_equal(np.array(Pillow.open(tmp_path / "new" / "a.png")), colour)
    np.testing.assert_array_equal(np.array(Pillow.open(tmp_path / "new" / "b.png")), colour[..., 0])
    assert sorted(entry.name for entry in (tmp_path / "new").iterdir()) == ["a.png", "b.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save_png(tmp_path / "file" / "a.png", colour)


def test_thumbnail(tmp_path: Path) -> None:
    values = np.zeros((300, 500, 3), dtype=np.uint8)
    values[:, 250:] = 200
    Pillow.fromarray(values).save(tmp_path / "photo.png")
    with Slide.open(tmp_path / "photo.png", mpp=2.0) as slide:
        small, whole = thumbnail(slide, max_px=100), thumbnail(slide)
    assert small.frame.shape == (60, 100)
    assert small.frame.pixel_um == pytest.approx(10.0)
    np.testing.assert_array_equal(small.array[:, :50], 0)
    np.testing.assert_array_equal(small.array[:, 50:], 200)
    np.testing.assert_array_equal(whole.array, values)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".tif", ".tiff"])
def test_a_picture_has_the_format_of_its_suffix(suffix: str, tmp_path: Path) -> None:
    drawn = np.full((30, 40, 3), (250, 10, 20), np.uint8)
    save_picture(tmp_path / f"a{suffix}", drawn)
    with Pillow.open(tmp_path / f"a{suffix}") as picture:
        assert picture.format == {".png": "PNG", ".jpg": "JPEG", ".JPEG": "JPEG"}.get(suffix, "TIFF")
        assert np.abs(np.asarray(picture, dtype=int) - drawn).max() <= (3 if picture.format == "JPEG" else 0)


def test_a_pdf_has_the_same_bytes_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.zeros((30, 40), np.uint8)
    save_picture(tmp_path / "a.pdf", drawn)
    monkeypatch.setattr("time.time", lambda: 1e9)
    save_picture(tmp_path / "b.pdf", drawn)
    data = (tmp_path / "a.pdf").read_bytes()
    assert data.startswith(b"%PDF-")
    assert b"19700101" in data
    assert data == (tmp_path / "b.pdf").read_bytes()


@pytest.mark.parametrize("name", ["a.svg", "a.bmp", "a"])
def test_other_formats_are_refused_with_the_list_of_those_possible(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputNameError, match=r"end it in .*\.png.*\.pdf"):
        save_picture(tmp_path / name, np.zeros((3, 4), np.uint8))
    assert not list(tmp_path.iterdir())
