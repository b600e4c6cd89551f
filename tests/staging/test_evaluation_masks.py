from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as Pillow

from annotations.annotation import Annotation, Role
from annotations.errors import UnknownGroupError
from annotations.files.asap import write_asap
from annotations.files.formats import read_annotations
from annotations.masks.mask_file import write_annotation_mask
from annotations.painting import Painting
from staging.errors import CohortError, ConfigurationError
from staging.lesions.detections import Detections
from staging.scores.evaluation_masks import find_masks, read_true_tumour
from staging.scores.froc import EvaluationMask, evaluation_mask, slide_hits
from wsi.errors import PathologyError, SlideFormatError
from wsi.geometry import Frame

Values = NDArray[np.uint8]


def tumour() -> NDArray[np.bool_]:
    inside = np.zeros((300, 400), dtype=np.bool_)
    inside[100:150, 200:260] = True
    inside[110:120, 210:220] = False
    inside[20:23, 30:33] = True
    return inside


def same(ours: EvaluationMask | None, expected: NDArray[np.bool_]) -> None:
    assert ours is not None
    other = evaluation_mask(expected)
    assert ours.targets == other.targets
    assert ours.shape == (expected.shape if other.shape else None)
    np.testing.assert_array_equal(ours.labels, other.labels)


def write_levels(path: Path, levels: list[Values], *, um: float | None = None, **options: Any) -> None:
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            scale: dict[str, Any] = (
                {} if um is None else {"resolution": (1e4 / um / 2**number,) * 2, "resolutionunit": "CENTIMETER"}
            )
            file.write(level, tile=(64, 64), compression="zlib", subfiletype=int(number > 0), **scale, **options)


def pyramid(values: Values, *, above: int, below: int = 0) -> list[Values]:
    """Levels of factor 2 with ``above`` finer ones than the given and ``below`` coarser ones."""
    finer = [np.kron(values, np.ones((2**step, 2**step), dtype=np.uint8)) for step in range(above, 0, -1)]
    return [*finer, values, *(values[:: 2**step, :: 2**step] for step in range(1, below + 1))]


@pytest.mark.parametrize("value", [255, 1])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_plain_pictures_of_the_level(tmp_path: Path, suffix: str, value: int) -> None:
    path = tmp_path / f"a{suffix}"
    Pillow.fromarray(tumour().astype(np.uint8) * value).save(path)
    found = read_true_tumour(path)
    same(found.mask, tumour())
    assert found.value == value


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "I;16"])
def test_kinds_of_pixels(tmp_path: Path, mode: str) -> None:
    grey = Pillow.fromarray(tumour().astype(np.uint8) * 255)
    if mode == "P":
        grey = Pillow.fromarray(tumour().astype(np.uint8))
        grey.putpalette([0, 0, 0, 200, 30, 30])
    elif mode == "I;16":
        grey = Pillow.fromarray(tumour().astype(np.uint16) * 255)
    else:
        grey = grey.convert(mode)
    grey.save(tmp_path / "a.png")
    found = read_true_tumour(tmp_path / "a.png")
    same(found.mask, tumour())
    assert found.value == (1 if mode in "1P" else 255)


@pytest.mark.parametrize(
    ("um", "above", "below"),
    [(None, 5, 1), (0.243, 5, 0), (0.25, 5, 1), (0.226, 5, 1), (7.776, 0, 2), (3.888, 1, 1), (None, 0, 0)],
)
def test_the_level_is_found_by_its_size(tmp_path: Path, um: float | None, above: int, below: int) -> None:
    small = tumour()[90:160:2, 190:280:2]
    write_levels(tmp_path / "a.tif", pyramid(small.astype(np.uint8) * 255, above=above, below=below), um=um)
    same(read_true_tumour(tmp_path / "a.tif").mask, small)


@pytest.mark.parametrize(
    ("um", "reason"), [(0.25, r"no level near 7\.776 um"), (60.0, "states 60 um per px, not within")]
)
def test_a_mask_without_the_level_is_refused(tmp_path: Path, um: float, reason: str) -> None:
    write_levels(tmp_path / "a.tif", [tumour().astype(np.uint8)], um=um)
    with pytest.raises(SlideFormatError, match=reason):
        read_true_tumour(tmp_path / "a.tif")


def test_another_level_may_be_scored(tmp_path: Path) -> None:
    write_levels(tmp_path / "a.tif", pyramid(tumour().astype(np.uint8), above=0, below=2), um=3.888)
    found = read_true_tumour(tmp_path / "a.tif", level=4).mask
    assert found is not None
    assert found.targets == evaluation_mask(tumour(), level=4).targets


def test_missing_tiles_are_background(tmp_path: Path) -> None:
    values = tumour()[:256, :384].astype(np.uint8) * 255

    def tiles() -> Iterator[Values | None]:
        for row in range(0, 256, 64):
            for column in range(0, 384, 64):
                tile = values[row : row + 64, column : column + 64]
                yield tile if tile.any() else None

    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(tiles(), shape=values.shape, dtype=np.uint8, tile=(64, 64), compression="zlib")
    same(read_true_tumour(tmp_path / "a.tif").mask, values > 0)


def test_an_asap_mask(real_data: Callable[[str], Path]) -> None:
    path = real_data("slides/asap_mask_864x800.tif")
    found = read_true_tumour(path)
    expected = tifffile.imread(path, key=1) == 1
    assert found.value == 1
    same(found.mask, expected[:400, :432])


@pytest.mark.parametrize(
    ("values", "given", "expected"),
    [
        ([0, 255], None, 255),
        ([255], None, 255),
        ([0, 1], None, 1),
        ([0], None, None),
        ([0], 255, 255),
        ([0, 1, 2], 2, 2),
        ([0, 1, 2], 1, 1),
        ([0, 7], 7, 7),
        ([0, 1], 255, 255),
    ],
)
def test_the_value_of_tumour(tmp_path: Path, values: list[int], given: int | None, expected: int | None) -> None:
    array = np.resize(np.array(values, dtype=np.uint8), (20, 30))
    Pillow.fromarray(array).save(tmp_path / "a.png")
    found = read_true_tumour(tmp_path / "a.png", tumour_value=given)
    assert found.value == expected
    assert (found.mask is None) == (expected not in values)


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 2], [2], [0, 1, 255], [0, 128, 255], list(range(256))])
def test_unclear_values_are_refused(tmp_path: Path, values: list[int]) -> None:
    Pillow.fromarray(np.resize(np.array(values, dtype=np.uint8), (20, 30))).save(tmp_path / "a.png")
    with pytest.raises(ConfigurationError, match=r"has the values .*--tumour-value"):
        read_true_tumour(tmp_path / "a.png")


def test_colours_are_refused(tmp_path: Path) -> None:
    colours = np.zeros((64, 64, 3), dtype=np.uint8)
    colours[10:20, :, 0] = 255
    Pillow.fromarray(colours).save(tmp_path / "a.png")
    write_levels(tmp_path / "a.tif", [colours], photometric="rgb")
    for name in ("a.png", "a.tif"):
        with pytest.raises(SlideFormatError, match="colour picture"):
            read_true_tumour(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.xml"])
@pytest.mark.parametrize("data", [b"", b"nothing known", b"\x89PNG\r\n\x1a\nbroken", b"II*\x00\x08\x00\x00\x00"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PathologyError, match=str(tmp_path / name)):
        read_true_tumour(tmp_path / name)


def outline(group: str, *points: tuple[float, float]) -> Annotation:
    return Annotation(name="a", group=group, role=Role.IGNORE, kind="Polygon", vertices=np.array(points, dtype=float))


def box(group: str, left: float, top: float, right: float, bottom: float) -> Annotation:
    return outline(group, (left, top), (right, top), (right, bottom), (left, bottom))


def test_outlines_equal_the_mask_they_draw(tmp_path: Path) -> None:
    write_asap(
        tmp_path / "a.xml",
        [
            box("_0", 200 * 32, 100 * 32, 260 * 32, 150 * 32),
            box("_2", 210 * 32, 110 * 32, 220 * 32, 120 * 32),
            box("Tumor", 30 * 32, 20 * 32, 33 * 32, 23 * 32),
        ],
    )
    found = read_true_tumour(tmp_path / "a.xml")
    assert found.value is None
    assert found.mask is not None
    assert found.mask.shape is None
    expected = evaluation_mask(tumour())
    assert found.mask.targets == expected.targets
    rows, columns = np.meshgrid(np.arange(-5, 400), np.arange(-5, 500), indexing="ij")
    np.testing.assert_array_equal(found.mask.at(rows, columns), expected.at(rows, columns))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(400, 1600), st.floats(400, 1600)), min_size=3, max_size=8), st.sampled_from([3, 5]))
def test_the_official_score_samples_the_corner_of_a_pixel(
    tmp_path_factory: pytest.TempPathFactory, corners: list[tuple[float, float]], level: int
) -> None:
    path = tmp_path_factory.mktemp("corner") / "a.xml"
    write_asap(path, [outline("Tumor", *corners)])
    found = read_true_tumour(path, level=level)
    side = 1 << level
    grids = {
        "mask": Frame(x=0, y=0, downsample=1.0, shape=(2048, 2048), mpp=None),
        "corrected": Frame(x=0, y=0, downsample=side, shape=(2048 // side, 2048 // side), mpp=None),
    }
    painting = Painting.of(read_annotations(path))
    for name, grid in grids.items():
        painted = painting.mask(grid).array
        expected = painted[::side, ::side] if name == "mask" else painted
        mask = getattr(found, name)
        assert (mask is None) == (not expected.any())
        assert mask is None or mask.targets == evaluation_mask(expected, level=level).targets


@pytest.mark.parametrize("mpp", [0.2431, 0.5, 1.0])
@pytest.mark.parametrize("out_mpp", [None, 2.0])
def test_lesions_are_where_they_are_on_slides_of_any_resolution(
    tmp_path: Path, mpp: float, out_mpp: float | None
) -> None:
    corners = [(1500.0, 900.0), (3200.0, 1000.0), (3000.0, 2600.0), (1400.0, 2500.0)]  # um
    outline_px = outline("Tumor", *((x / mpp, y / mpp) for x, y in corners))
    write_asap(tmp_path / "a.xml", [outline_px])
    shape = round(4000 / mpp), round(5000 / mpp)
    frame = Frame(x=0.0, y=0.0, downsample=1.0, shape=shape, mpp=mpp)
    if out_mpp is not None:
        frame = frame.resampled(out_mpp / mpp)
    write_annotation_mask(tmp_path / "a.tif", read_annotations(tmp_path / "a.xml"), frame)
    centre = shapely.Polygon(corners).centroid
    for name, slide_mpp in (("a.tif", None), ("a.tif", mpp), ("a.xml", mpp)):
        found = read_true_tumour(tmp_path / name, slide_mpp=slide_mpp)
        for mask in (found.mask, found.corrected):
            assert mask is not None
            (target,) = mask.targets
            assert target.centroid == pytest.approx((centre.x / mpp, centre.y / mpp), abs=12 / mpp)
            assert target.major_axis_px * 7.776 == pytest.approx(1980, rel=0.08)
            x, y = (np.array([along / mpp]) for along in (1700, 1200))
            inside = Detections(path=None, probability=np.array([0.9]), x=x, y=y, lines=(1,))
            assert slide_hits("a", mask, inside).hits == (0.9,)


def test_whose_pixels_those_of_a_mask_are_is_not_guessed(tmp_path: Path) -> None:
    levels = pyramid(tumour().astype(np.uint8), above=4)
    write_levels(tmp_path / "a.tif", levels, um=0.5)
    with pytest.raises(SlideFormatError, match=r"pixels of 0\.5 um, .* \(give --slide-mpp"):
        read_true_tumour(tmp_path / "a.tif")
    for slide_mpp, side in ((0.5, 16), (0.25, 32)):
        mask = read_true_tumour(tmp_path / "a.tif", slide_mpp=slide_mpp).mask
        assert mask is not None
        assert mask.downsample == side
        assert mask.targets[0].major_axis_px == evaluation_mask(tumour()).targets[0].major_axis_px
    Pillow.fromarray(tumour().astype(np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(SlideFormatError, match="does not say how large its pixels are"):
        read_true_tumour(tmp_path / "b.png", slide_mpp=0.5)
    same(read_true_tumour(tmp_path / "b.png", slide_mpp=0.25).mask, tumour())


@pytest.mark.parametrize("drawn", [[], [box("_2", 0, 0, 900, 900)], [box("_0", 1, 1, 5, 5)]])
def test_outlines_without_tumour_at_the_level(tmp_path: Path, drawn: list[Annotation]) -> None:
    write_asap(tmp_path / "a.xml", drawn)
    assert read_true_tumour(tmp_path / "a.xml").mask is None


def test_outlines_of_unknown_groups_are_refused(tmp_path: Path) -> None:
    write_asap(tmp_path / "a.xml", [box("gland", 0, 0, 900, 900)])
    with pytest.raises(UnknownGroupError, match="gland"):
        read_true_tumour(tmp_path / "a.xml")
    assert read_true_tumour(tmp_path / "a.xml", groups={"gland": Role.TUMOUR}).mask is not None


def test_outlines_far_out_are_refused(tmp_path: Path) -> None:
    write_asap(tmp_path / "a.xml", [box("_0", 0, 0, 9e8, 9e8)])
    with pytest.raises(SlideFormatError, match="more than a slide"):
        read_true_tumour(tmp_path / "a.xml")


@pytest.mark.parametrize("name", ["tumor_009", "tumor_085"])
def test_real_outlines(real_data: Callable[[str], Path], name: str) -> None:
    found = read_true_tumour(real_data(f"annotations/camelyon16/{name}.xml")).mask
    assert found is not None
    assert any(not target.is_itc for target in found.targets)


def test_masks_are_found_by_the_names_of_slides(tmp_path: Path) -> None:
    names = {"Tumor_001_Mask.tif": "tumor_001", "test_002_mask.PNG": "test_002", "deep/test_004.xml": "test_004"}
    (tmp_path / "deep").mkdir()
    for name in (*names, ".hidden.png", "reference.csv"):
        (tmp_path / name).touch()
    assert find_masks(tmp_path) == {slide: tmp_path / name for name, slide in names.items()}
    (tmp_path / "tumor_001.xml").touch()
    with pytest.raises(CohortError, match="second mask of tumor_001"):
        find_masks(tmp_path)


def test_folders_without_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="contains no masks"):
        find_masks(tmp_path)
    with pytest.raises(CohortError, match="no such folder"):
        find_masks(tmp_path / "nowhere")
