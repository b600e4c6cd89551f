"""Pictures of slides: what they show, where, and how large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from wsi.errors import OutputNameError, StorageError
from wsi.findings import EDGE, INK, Findings
from wsi.geometry import Frame, Region, Window
from wsi.legends import em_px, line_px
from wsi.raster import Heatmap, Mask
from wsi.render import close_up, save_picture, save_png, slide_picture, thumbnail
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

GAP = 10


def slide_of(path: Path, *, rows: int, columns: int, mpp: float) -> Slide:
    """Tissue of one colour from edge to edge."""
    tile = np.full((512, 512, 3), (190, 130, 180), dtype=np.uint8)
    tiles = [tile] * (-(-rows // 512) * -(-columns // 512))
    write_pyramid(path / "slide.tif", width=columns, height=rows, mpp=mpp, tiles=tiles)
    return Slide.open(path / "slide.tif")


def findings_of(slide: Slide, *spots: tuple[float, float, float], cell_um: float) -> Findings:
    """Round lesions: centre x and y as shares of the slide, diameter in um."""
    frame = slide.frame.resampled(cell_um / slide.frame.pixel_um)
    rows, columns = (np.arange(side) + 0.5 for side in frame.shape)
    values, masks = np.zeros(frame.shape, dtype=np.float32), []
    for x, y, diameter_um in spots:
        away = np.hypot.outer(rows - y * frame.shape[0], columns - x * frame.shape[1])
        cells = away < max(diameter_um / cell_um / 2, 0.75)
        values[cells] = 0.95
        at = np.nonzero(cells)
        window = Window.between(
            row=int(at[0].min()), column=int(at[1].min()), bottom=int(at[0].max()) + 1, right=int(at[1].max()) + 1
        )
        masks.append(Mask(frame=frame.part(window), array=cells[window.slices]))
    heatmap = Heatmap(frame=frame, array=values, tissue=np.ones(frame.shape, dtype=bool))
    return Findings(heatmap=heatmap, threshold=0.5, lesions=tuple(masks))


def of_colour(drawn: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray((drawn == colour).all(axis=2))


def extent(seen: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right."""
    rows, columns = np.nonzero(seen)
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def strip_px(width: int) -> int:
    em = em_px(width)
    return 2 * round(1.7 * em) + em // 2


@pytest.mark.parametrize(("rows", "columns"), [(1600, 800), (800, 1600)])
def test_the_slide_is_beside_what_was_found(rows: int, columns: int, tmp_path: Path) -> None:
    with slide_of(tmp_path, rows=rows, columns=columns, mpp=4.0) as slide:
        small = thumbnail(slide)
        findings = findings_of(slide, (0.5, 0.25, 1500.0), cell_um=16.0)
        drawn = slide_picture(slide, findings)
        assert slide_picture(slide, findings).tobytes() == drawn.tobytes()
    height, width = small.frame.shape
    top, left = (0, width + GAP) if rows > columns else (height + GAP, 0)
    assert drawn.shape == (top + height + strip_px(left + width), left + width, 3)
    np.testing.assert_array_equal(drawn[:height, :width], small.array)
    shown = drawn[top : top + height, left : left + width]
    upper, first, lower, last = extent(of_colour(shown, EDGE))
    assert (upper + lower) / 2 == pytest.approx(height / 4, abs=3)
    assert (first + last) / 2 == pytest.approx(width / 2, abs=3)
    assert lower - upper == pytest.approx(1500 / small.frame.pixel_um + 4 * line_px(drawn.shape[1]), abs=6)
    saturation = shown.max(axis=2) - shown.min(axis=2)
    assert saturation[height * 3 // 4 :].max() == 0  # grey, whatever the stain
    assert saturation[height // 4, width // 2] > 100


def test_a_lesion_too_small_to_see_is_enlarged(tmp_path: Path) -> None:
    with slide_of(tmp_path, rows=5000, columns=6250, mpp=8.0) as slide:  # 5 x 4 cm
        drawn = slide_picture(slide, findings_of(slide, (0.3, 0.4, 100.0), cell_um=16.0))
    width = 1000
    inset_px = width // 3
    below = 800 + GAP + 800 + GAP
    assert drawn.shape == (below + inset_px + strip_px(width), width, 3)
    inset = drawn[below : below + inset_px]
    top, left, bottom, right = extent(of_colour(inset, EDGE))
    um_per_px = 300.0 / inset_px
    line = 2 * line_px(width)
    assert (bottom - top - 3 * line) * um_per_px == pytest.approx(100, abs=20)
    assert ((top + bottom) / 2, (left + right) / 2) == pytest.approx((inset_px / 2, width / 2), abs=12)
    bar = of_colour(inset[inset_px - round(1.5 * em_px(width)) // 2, :300][np.newaxis], INK)[0]
    assert np.flatnonzero(bar)[line : 200 + line].size == 200
    overview = of_colour(drawn[:below], INK)
    assert not overview[:810].any()
    ends = np.flatnonzero(overview[below - 1])
    assert abs(ends.mean() - width / 2) < 4  # the line ends above the inset's middle
    box = extent(overview[810 : 810 + 500, :400])
    assert box[0] == pytest.approx(0.4 * 800, abs=12)
    assert box[1] == pytest.approx(0.3 * width, abs=20)
    assert all(overview[row].any() for row in range(810 + box[0] + 12, below))


@pytest.mark.parametrize(
    ("sizes", "insets"), [((3000.0,), 0), ((3000.0, 100.0), 1), ((100.0, 90.0, 80.0, 70.0, 60.0), 3)]
)
def test_insets_share_one_scale_and_are_three_at_most(sizes: tuple[float, ...], insets: int, tmp_path: Path) -> None:
    spots = [(0.1 + 0.18 * number, 0.5, size) for number, size in enumerate(sizes)]
    with slide_of(tmp_path, rows=2500, columns=3125, mpp=16.0) as slide:
        drawn = slide_picture(slide, findings_of(slide, *spots, cell_um=32.0))
    below = 2 * (800 + GAP)
    assert drawn.shape[0] - strip_px(1000) == (below + 333 if insets else below - GAP)
    if insets:
        bars = of_colour(drawn[[below + 333 - round(1.5 * em_px(1000)) // 2]], INK)
        assert len({int(part[0, 20:130].sum()) for part in np.array_split(bars, insets, axis=1)}) == 1
        edges = np.array_split(of_colour(drawn[below : below + 333], EDGE), insets, axis=1)
        assert all(part.any() for part in edges)


def test_boxes_are_numbered_where_they_lie(tmp_path: Path) -> None:
    with slide_of(tmp_path, rows=1000, columns=800, mpp=4.0) as slide:
        findings = findings_of(slide, (0.5, 0.5, 60.0), cell_um=16.0)
        drawn = slide_picture(slide, findings, boxes=[Region(x=100, y=200, width=300, height=150)])
        without = slide_picture(slide, findings, boxes=[Region(x=600, y=800, width=10, height=10)])
    assert drawn.shape == (1000 + strip_px(1610), 1610, 3)
    left = 800 + GAP
    assert of_colour(drawn[200:350, left + 95 : left + 105], INK).any(axis=1).all()
    assert of_colour(drawn[195:205, left + 100 : left + 400], INK).any(axis=0).all()
    assert (drawn[150:260, left + 410 : left + 470] != without[150:260, left + 410 : left + 470]).any()  # the number
    np.testing.assert_array_equal(drawn[:, :800], without[:, :800])


def test_the_scale_bar_is_as_long_as_it_says_and_read_at_240_px(tmp_path: Path) -> None:
    with slide_of(tmp_path, rows=1000, columns=800, mpp=4.0) as slide:
        drawn = slide_picture(slide, findings_of(slide, (0.5, 0.5, 900.0), cell_um=16.0))
    em = em_px(1610)
    strip = of_colour(drawn[1000:], INK)
    middle = em // 4 + round(1.7 * em) // 2
    bar = np.flatnonzero(strip[middle, : 1610 // 3])
    assert bar[: np.flatnonzero(np.diff(bar, append=10**6) > 1)[0] + 1].size == 1000 / 4
    assert em * 240 / 1610 >= 10
    small = Pillow.fromarray(drawn).resize((240, round(240 * drawn.shape[0] / 1610)), Pillow.Resampling.LANCZOS)
    thick = (np.asarray(small.convert("L"))[round(1000 * 240 / 1610) :, 20] < 90).sum()
    assert thick >= 2


@pytest.mark.parametrize("mpp", [None, 2.0])
@pytest.mark.parametrize("threshold", [0.05, 0.5, 1.0])
def test_small_pictures_without_scale_and_odd_thresholds(mpp: float | None, threshold: float, tmp_path: Path) -> None:
    Pillow.new("RGB", (20, 30), "white").save(tmp_path / "a.png")
    with Slide.open(tmp_path / "a.png", mpp=mpp) as slide:
        frame = Frame(x=0, y=0, downsample=8.0, shape=(3, 2), mpp=mpp)
        heatmap = Heatmap(frame=frame, array=np.ones((3, 2), np.float32), tissue=np.ones((3, 2), bool))
        mask = Mask(frame=frame, array=np.ones((3, 2), bool))
        findings = Findings(heatmap=heatmap, threshold=threshold, lesions=(mask,))
        drawn = slide_picture(slide, findings)
        assert drawn.shape == (30 + strip_px(560), 560, 3)
        assert (drawn[:30, 60:] == 255).all()
        mask = Mask(frame=frame.part(Window(row=1, column=1, height=1, width=1)), array=np.ones((1, 1), bool))
        enlarged = slide_picture(slide, Findings(heatmap=heatmap, threshold=threshold, lesions=(mask,)))
        assert enlarged.shape == (30 + GAP + 560 // 3 + strip_px(560), 560, 3)


def test_close_ups_have_one_size_and_a_scale_bar(tmp_path: Path) -> None:
    with slide_of(tmp_path, rows=1000, columns=800, mpp=4.0) as slide:
        findings = findings_of(slide, (0.5, 0.5, 200.0), cell_um=16.0)
        plain, edged = close_up(slide, findings, x=400, y=500, side_um=600, side_px=600)
        beyond, _ = close_up(slide, findings, x=0, y=0, side_um=600, side_px=600)
    assert plain.shape == edged.shape == beyond.shape == (600, 600, 3)
    assert (beyond[:300] == 255).all()
    top, left, bottom, right = extent(of_colour(edged, EDGE))
    assert (bottom - top, right - left) == pytest.approx((200 + 6, 200 + 6), abs=18)
    np.testing.assert_array_equal(edged[250:350, 250:350], plain[250:350, 250:350])  # the lesion itself is not painted
    em = em_px(600)
    for drawn in (plain, edged):
        bar = np.flatnonzero(of_colour(drawn, INK)[600 - round(1.5 * em) // 2, :200])
        assert bar[:100].tolist() == list(range(em // 2, em // 2 + 100))


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
