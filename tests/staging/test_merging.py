from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, cKDTree
from scipy.spatial.distance import pdist

from staging.lesions import merging
from staging.lesions.components import Numbers, Spans, bands_of, label_spans, trace
from staging.lesions.finding import measure_mask
from staging.lesions.merging import merge_near
from wsi.geometry import Frame

masks = arrays(np.bool_, st.tuples(st.integers(1, 16), st.integers(1, 16)), elements=st.booleans())
gaps = st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.3, 4.6875, 5.0, 9.0, 13.0, float("inf")])


@st.composite
def crowds(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Dozens of small squares, slanted lines and specks near each other."""
    rows, columns = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    mask = np.zeros((rows, columns), dtype=np.bool_)
    for _ in range(draw(st.integers(1, 30))):
        row, column = draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))
        size, slope = draw(st.integers(1, 6)), draw(st.sampled_from([None, -1, 1]))
        if slope is None:
            mask[row : row + size, column : column + size] = True
        else:
            along = np.arange(min(size, rows - row))
            mask[row + along, (column + slope * along).clip(0, columns - 1)] = True
    return mask


def gaps_between(ones: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Squares of the gaps in cells between each cell of one and each of the other, (row, column) each."""
    apart = (np.abs(ones[:, np.newaxis] - others) - 1).clip(0)
    squared: NDArray[np.int64] = (apart**2).sum(axis=2)
    return squared


def by_brute_force(mask: NDArray[np.bool_], spans: Spans, gap: float) -> Numbers:
    """The group of each span from all pairs of cells, numbered in the order of first cells."""
    cells = np.argwhere(mask)
    _, group = connected_components(gaps_between(cells, cells) <= gap * gap, directed=False)
    picture = np.zeros(mask.shape, dtype=np.int64)
    picture[mask] = group
    of_spans = picture[spans.rows, spans.starts].tolist()
    rank = {label: number for number, label in enumerate(dict.fromkeys(of_spans))}
    return np.array([rank[label] for label in of_spans], dtype=np.int64)


@settings(deadline=None, max_examples=100)
@given(st.one_of(masks, crowds()), gaps, st.sampled_from([1, 40, 1 << 19]), st.sampled_from([1, 30, 1 << 16]))
def test_groups_agree_with_brute_force(mask: NDArray[np.bool_], gap: float, spans_at_once: int, pairs: int) -> None:
    spans = trace([mask])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "_SPANS_AT_ONCE", spans_at_once)
        patch.setattr(merging, "_PAIRS_AT_ONCE", pairs)
        found = merge_near(spans, label_spans(spans), gap)
    assert np.array_equal(found, by_brute_force(mask, spans, gap))


@settings(deadline=None, max_examples=60)
@given(masks, masks, st.integers(-400, 400), st.integers(17, 400))
def test_the_limit_itself_merges_and_a_hair_less_does_not(
    one: NDArray[np.bool_], other: NDArray[np.bool_], aside: int, down: int
) -> None:
    one, other = (np.pad(mask, ((0, 0), (1, 0)), constant_values=True) for mask in (one, other))
    canvas = np.zeros((down + other.shape[0], 900), dtype=np.bool_)
    canvas[: one.shape[0], 420 : 420 + one.shape[1]] = one
    cells = np.argwhere(canvas)
    canvas[down:, 420 + aside : 420 + aside + other.shape[1]] = other
    others = np.argwhere(canvas)[len(cells) :]
    spans = trace([canvas])
    # two pieces whatever lies loose within each of them
    two = (spans.rows >= down).astype(np.int64)
    gap = float(np.sqrt(gaps_between(cells, others).min()))
    assert merge_near(spans, two, gap).max() == 0
    assert merge_near(spans, two, gap - 1e-6).max() == 1


@pytest.mark.parametrize("gap", [1.0, 2.3, 5.0, 9.0])
def test_two_cells_merge_up_to_the_gap_in_every_direction(gap: float) -> None:
    """Each pair far from the others, and each offset from several corners, so that it spans squares in every way."""
    reach = int(gap) + 2
    offsets = [
        (down, aside)
        for down in range(reach + 1)
        for aside in range(-reach, reach + 1)
        if max(down, abs(aside)) > 1 and (down, aside) > (0, 0)
    ]
    pairs = []
    for number, ((down, aside), shift) in enumerate(product(offsets, range(int(gap) + 1))):
        row, column = (part * 4 * reach + reach + shift for part in divmod(number, 40))
        pairs.append(((row, column), (row + down, column + aside)))
    mask = np.zeros(np.max(pairs, axis=(0, 1)) + 1, dtype=np.bool_)
    mask[tuple(np.reshape(pairs, (-1, 2)).T)] = True
    spans = trace([mask])
    groups = merge_near(spans, label_spans(spans), gap)
    group_of = dict(zip(zip(spans.rows.tolist(), spans.starts.tolist(), strict=True), groups.tolist(), strict=True))
    ones, others = np.array(pairs).transpose(1, 0, 2)
    is_near = (((abs(others - ones) - 1).clip(0)) ** 2).sum(axis=1) <= gap * gap
    assert [group_of[one] == group_of[other] for one, other in pairs] == is_near.tolist()
    assert len(set(group_of.values())) == 2 * len(pairs) - is_near.sum()


def test_full_rectangles_are_compared_without_cutting_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(_: merging._Pairs) -> merging._Pairs:
        raise AssertionError

    monkeypatch.setattr(merging._Pairs, "halved", halved)
    rng = np.random.default_rng(5)
    mask = np.zeros((72, 84), dtype=np.bool_)
    for row, column in product(range(0, 72, 12), range(0, 84, 12)):
        height, width = rng.integers(1, 9, 2)
        mask[row : row + height, column : column + width] = True
    spans = trace([mask])
    for gap in (4.0, 5.5, 7.0):
        assert np.array_equal(merge_near(spans, label_spans(spans), gap), by_brute_force(mask, spans, gap))


def test_nothing_merges_within_no_gap() -> None:
    spans = trace([np.array([[True, False, True]])])
    assert merge_near(spans, label_spans(spans), 0.0).tolist() == [0, 1]
    nothing = trace([np.zeros((3, 4), dtype=np.bool_)])
    assert len(merge_near(nothing, label_spans(nothing), 5.0)) == 0


@pytest.mark.parametrize("gap", [30.0, 75.5])
def test_large_gaps_agree_with_growing(gap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_SPANS_AT_ONCE", 7)
    rng = np.random.default_rng(4)
    for _ in range(6):
        mask = np.zeros((400, 500), dtype=np.bool_)
        for row, column, side in rng.integers((0, 0, 1), (400, 500, 40), (14, 3)):
            mask[row : row + side, column : column + side] = True
        spans = trace([mask])
        found = merge_near(spans, label_spans(spans), gap)
        labels = np.zeros(mask.shape, dtype=np.int64)
        for row, start, stop, number in zip(spans.rows, spans.starts, spans.stops, found, strict=True):
            labels[row, start:stop] = number + 1
        # the distance of the squares of two cells is that of their nearest corners
        corners = with_corners(mask)
        for number in range(1, int(found.max()) + 2):
            own = with_corners(labels == number)
            distance = ndimage.distance_transform_edt(~own)
            others = corners & ~own
            assert not others.any() or distance[others].min() > gap
            pieces, count = ndimage.label(own, structure=np.ones((3, 3)))
            if count > 1:
                assert all(
                    ndimage.distance_transform_edt(pieces != one)[(pieces > 0) & (pieces != one)].min() <= gap
                    for one in range(1, count + 1)
                )


def with_corners(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The corners of a mask's cells."""
    wide = np.pad(mask, 1)
    result: NDArray[np.bool_] = wide[1:, 1:] | wide[:-1, 1:] | wide[1:, :-1] | wide[:-1, :-1]
    return result


def test_twenty_thousand_deposits_near_each_other() -> None:
    """Rectangles on a shaken grid; the gap between two is that between their sides."""
    rng = np.random.default_rng(7)
    step, gap = 40, 29.0
    positions = np.indices((100, 200)).reshape(2, -1).T * step
    low = positions + rng.integers(0, 12, positions.shape)
    high = low + rng.integers(1, 26, positions.shape)
    mask = np.zeros((100 * step, 200 * step), dtype=np.bool_)
    for (top, left), (bottom, right) in zip(low.tolist(), high.tolist(), strict=True):
        mask[top:bottom, left:right] = True
    one, other = cKDTree(positions).query_pairs(3.5 * step, output_type="ndarray").T
    apart = np.maximum(low[one] - high[other], low[other] - high[one]).clip(0)
    is_near = (apart**2).sum(axis=1) <= gap * gap
    edges = (np.ones(is_near.sum()), (one[is_near], other[is_near]))
    count, group = connected_components(coo_array(edges, shape=(len(low), len(low))), directed=False)

    frame = Frame(x=0.0, y=0.0, downsample=1.0, shape=mask.shape, mpp=1.0)
    found = measure_mask(bands_of(mask, band_rows=512), frame, merge_gap_um=gap)
    assert len(found) == count > 20
    assert sorted(lesion.deposits for lesion in found) == sorted(np.bincount(group).tolist())
    assert found[0].deposits > 15_000
    chosen = group == np.bincount(group).argmax()
    sizes = (high - low)[chosen]
    assert found[0].area_um2 == sizes.prod(axis=1).sum()
    # outlines cross half-way between the centres of cells
    (top, left), (bottom, right) = low[chosen].T, high[chosen].T - 1
    ends = [(top - 0.5, left), (top - 0.5, right), (bottom + 0.5, left), (bottom + 0.5, right)]
    ends += [(top, left - 0.5), (bottom, left - 0.5), (top, right + 0.5), (bottom, right + 0.5)]
    outline = np.concatenate([np.stack(end, axis=1) for end in ends])
    assert found[0].longest_diameter_um == pytest.approx(pdist(outline[ConvexHull(outline).vertices]).max())


def test_spans_with_crossings_merge_as_those_of_their_mask() -> None:
    values = ndimage.gaussian_filter(np.random.default_rng(2).random((90, 80)), 1.5)
    spans = trace([values], threshold=0.53)
    plain = replace(spans, crossings=None, crossing_spans=None)
    components = label_spans(spans)
    groups = merge_near(spans, components, 3.0)
    assert 0 < groups.max() < components.max()
    assert np.array_equal(groups, merge_near(plain, components, 3.0))
