"""What was found, as colours and edges: seen by everyone, like no stain and no ink, and where it lies."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsi.findings import EDGE, INK, Findings, coloured, ramp
from wsi.geometry import Frame, Window
from wsi.raster import Heatmap, Image, Mask

PINK = (200, 120, 170)
STAINS_AND_INKS = {
    "haematoxylin": (90, 60, 140),
    "eosin": (225, 130, 180),
    "DAB": (140, 90, 50),
    "blood": (190, 40, 50),
    "black ink": (20, 20, 25),
    "blue ink": (30, 60, 150),
    "green ink": (20, 110, 70),
    "teal ink": (30, 140, 140),
    "red ink": (200, 30, 40),
    "yellow ink": (225, 200, 60),
    "orange ink": (235, 130, 40),
}
# Machado, Oliveira and Fernandes 2009: linear RGB as seen without one kind of cones
NO_CONES = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def picture(shape: tuple[int, int], *, downsample: float, x: float = 0.0, y: float = 0.0) -> Image:
    frame = Frame(x=x, y=y, downsample=downsample, shape=shape, mpp=0.25)
    return Image(frame=frame, array=np.full((*shape, 3), PINK, dtype=np.uint8))


def heatmap_of(values: NDArray[np.floating], *, x: float = 0.0, y: float = 0.0) -> Heatmap:
    frame = Frame(x=x, y=y, downsample=64.0, shape=values.shape, mpp=0.25)
    return Heatmap(frame=frame, array=values.astype(np.float32), tissue=np.ones(values.shape, dtype=bool))


def mask_of(heatmap: Heatmap, *, row: int, column: int, height: int, width: int) -> Mask:
    window = Window(row=row, column=column, height=height, width=width)
    return Mask(frame=heatmap.frame.part(window), array=np.ones((height, width), dtype=bool))


def lightness(colours: NDArray[np.float64], cones: str | None = None) -> NDArray[np.float64]:
    """CIE L* of sRGB 0..255 (..., 3), 0 to 100."""
    linear = np.where(colours > 10.31, ((colours / 255 + 0.055) / 1.055) ** 2.4, colours / 255 / 12.92)
    if cones is not None:
        linear = (linear @ np.array(NO_CONES[cones]).T).clip(0, 1)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.asarray(116 * np.cbrt(luminance) - 16)


@pytest.mark.parametrize("cones", [None, *NO_CONES])
def test_the_colours_darken_evenly_to_every_eye(cones: str | None) -> None:
    steps = np.diff(lightness(ramp(np.linspace(0, 1, 11)), cones))
    assert (steps < -3).all()


def test_no_colour_is_teal_blue_violet_or_pink() -> None:
    for colour in ramp(np.linspace(0, 1, 101)) / 255:
        hue, _, saturation = colorsys.rgb_to_hls(*colour)
        assert 15 < hue * 360 <= 62, saturation


def test_below_the_colours_every_stain_and_ink_is_grey() -> None:
    inks = np.array([list(STAINS_AND_INKS.values())], dtype=np.uint8)
    drawn = coloured(inks, np.full(inks.shape[:2], 0.1))
    assert (np.ptp(drawn, axis=2) == 0).all()
    assert drawn.min() > 90  # pale: black ink is no line of ours
    certain = coloured(inks, np.ones(inks.shape[:2])).astype(int)
    assert np.ptp(certain, axis=1).max() < 25  # the colour says the probability, whatever is below


@pytest.mark.parametrize("name", STAINS_AND_INKS)
def test_edges_are_like_no_stain_and_no_ink(name: str) -> None:
    hue, other = (colorsys.rgb_to_hsv(*(part / 255 for part in colour)) for colour in (EDGE, STAINS_AND_INKS[name]))
    away = abs(hue[0] - other[0]) * 360
    assert min(away, 360 - away) > 20
    for cones in (None, *NO_CONES):
        bright, dark = lightness(np.array([EDGE, INK], dtype=float), cones)
        under = lightness(np.array(STAINS_AND_INKS[name], dtype=float), cones)
        assert max(bright - under, under - dark) > 30  # the line or its casing stands out


def test_colour_grows_with_probability() -> None:
    values = np.repeat(np.linspace(0, 1, 21), 16)[np.newaxis].repeat(150, axis=0)
    findings = Findings(heatmap=heatmap_of(values), threshold=1.0)
    drawn = findings.shaded(picture((300, 672), downsample=32), line_px=1)[150, 16:672:32].astype(float)
    faint = np.ptp(drawn, axis=1)[:3]
    assert (faint == 0).all()
    assert (np.diff(lightness(drawn[5:-1])) < -1).all()


def test_full_lines_surround_lesions_and_dotted_ones_the_rest() -> None:
    values = np.zeros((60, 100))
    values[10:20, 10:30] = values[40:50, 60:80] = 0.9
    heatmap = heatmap_of(values)
    findings = Findings(
        heatmap=heatmap, threshold=0.5, lesions=(mask_of(heatmap, row=10, column=10, height=10, width=20),)
    )
    drawn = findings.edged(picture((60, 100), downsample=64), line_px=2)
    bright = (drawn == EDGE).all(axis=2)
    dark = (drawn == INK).all(axis=2)
    assert bright[:34].sum() == bright.sum() > 0
    assert bright[15, 7:9].all()  # a casing of 1 px, the line of 2, and a casing
    assert dark[15, [6, 9]].all()
    around = dark[38:52, 58:82].copy()
    around[2:12, 2:22] = True
    assert 0.3 < (around.sum() - 200) / (14 * 24 - 200) < 0.7
    np.testing.assert_array_equal(drawn[10:20, 10:30], np.full((10, 20, 3), PINK))  # nothing is painted on them
    np.testing.assert_array_equal(drawn[40:50, 60:80], np.full((10, 20, 3), PINK))


def test_close_to_a_lesion_nothing_is_dotted() -> None:
    rng = np.random.default_rng(3)
    values = np.zeros((30, 30))
    values[10:20, 10:20] = rng.uniform(0.5, 1, (10, 10))
    values[9:21, 9:21] = np.maximum(values[9:21, 9:21], 0.49)
    heatmap = heatmap_of(values)
    lesion = mask_of(heatmap, row=10, column=10, height=10, width=10)
    inside, others = Findings(heatmap=heatmap, threshold=0.5, lesions=(lesion,)).inside(
        Frame(x=500, y=500, downsample=3.7, shape=(300, 300), mpp=0.25)
    )
    assert inside.any()
    assert not others.any()


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (640.0, 1280.0)])
def test_probabilities_are_where_they_lie_on_the_slide(x: float, y: float) -> None:
    values = np.zeros((50, 80))
    values[10:20, 30:50] = 1.0
    findings = Findings(heatmap=heatmap_of(values, x=x, y=y), threshold=0.5)
    whole = findings.probability(picture((400, 600), downsample=16).frame)
    rows, columns = np.nonzero(whole >= 0.5)
    top, left = (y + 10 * 64) / 16, (x + 30 * 64) / 16
    assert (rows.min(), columns.min()) == pytest.approx((top, left), abs=1)
    assert (rows.max() + 1, columns.max() + 1) == pytest.approx((top + 40, left + 80), abs=1)
    window = Window(row=100, column=200, height=37, width=53)
    part = findings.probability(picture((400, 600), downsample=16).frame.part(window))
    np.testing.assert_allclose(part, whole[window.slices], atol=1e-9)
    assert not findings.probability(Frame(x=1e5, y=0, downsample=16, shape=(4, 4), mpp=0.25)).any()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    corner=st.tuples(st.floats(-900, 900), st.floats(-900, 900)),
    downsample=st.floats(5, 400),
    seed=st.integers(0, 99),
)
def test_pixels_have_the_highest_of_their_cells_and_what_lies_between(
    shape: tuple[int, int], size: tuple[int, int], corner: tuple[float, float], downsample: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    heatmap = heatmap_of((rng.random(shape) * (rng.random(shape) < 0.3)).astype(np.float32))
    target = Frame(x=corner[0], y=corner[1], downsample=downsample, shape=size, mpp=0.25)
    expected = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            (y,), (x,) = heatmap.frame.fractions(*(np.atleast_1d(one) for one in target.centres(row, column)))
            for cell_row in range(int(np.floor(y - 0.5)), int(np.floor(y - 0.5)) + 2):
                for cell_column in range(int(np.floor(x - 0.5)), int(np.floor(x - 0.5)) + 2):
                    if 0 <= cell_row < shape[0] and 0 <= cell_column < shape[1]:
                        share = (1 - abs(y - 0.5 - cell_row)) * (1 - abs(x - 0.5 - cell_column))
                        expected[row, column] += share * heatmap.array[cell_row, cell_column]
    for row, column in np.argwhere(heatmap.array):
        at, across = (int(np.floor(one)) for one in target.fractions(*heatmap.frame.centres(row, column)))
        if 0 <= at < size[0] and 0 <= across < size[1]:
            expected[at, across] = max(expected[at, across], heatmap.array[row, column])
    np.testing.assert_allclose(Findings(heatmap=heatmap, threshold=0.5).probability(target), expected, atol=1e-6)


def test_a_single_cell_shows_on_a_coarse_picture() -> None:
    for where in range(20):
        values = np.zeros((400, 400))
        values[100 + where, 200 + 3 * where % 17] = 0.9
        inside, others = Findings(heatmap=heatmap_of(values), threshold=0.5).inside(
            picture((40, 40), downsample=640).frame
        )
        assert (inside.sum(), others.sum()) == (0, 1)
