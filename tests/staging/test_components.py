from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from staging.lesions import components
from staging.lesions.components import Spans, bands_of, fill_holes, label_spans, trace

masks = arrays(np.bool_, st.tuples(st.integers(1, 16), st.integers(1, 16)), elements=st.booleans())


def painted(spans: Spans, values: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Each span's value (1 where none are given) in its cells, 0 elsewhere."""
    picture = np.zeros(spans.shape, dtype=np.int64)
    shown = np.ones(len(spans), dtype=np.int64) if values is None else values
    for row, start, stop, value in zip(spans.rows, spans.starts, spans.stops, shown, strict=True):
        assert not picture[row, start:stop].any()
        picture[row, start:stop] = value
    return picture


def same_partition(one: NDArray[np.integer], other: NDArray[np.integer]) -> bool:
    pairs = {(int(a), int(b)) for a, b in zip(one.ravel(), other.ravel(), strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


@settings(deadline=None, max_examples=100)
@given(masks, st.integers(1, 17))
def test_spans_are_the_mask_however_it_is_cut(mask: NDArray[np.bool_], band_rows: int) -> None:
    spans = trace(bands_of(mask, band_rows=band_rows))
    assert (painted(spans) == mask).all()
    assert spans.cells.sum() == mask.sum()
    touching = (spans.rows[1:] == spans.rows[:-1]) & (spans.starts[1:] <= spans.stops[:-1])
    assert not touching.any()


@settings(deadline=None, max_examples=100)
@given(masks)
def test_components_are_those_of_scipy(mask: NDArray[np.bool_]) -> None:
    spans = trace([mask])
    expected, count = ndimage.label(mask, structure=np.ones((3, 3)))
    found = label_spans(spans)
    assert same_partition(painted(spans, found + 1), expected)
    assert len(np.unique(found)) == count


@settings(deadline=None, max_examples=100)
@given(masks)
def test_holes_are_those_of_scipy(mask: NDArray[np.bool_]) -> None:
    filled = fill_holes(trace([mask]))
    assert (painted(filled) == ndimage.binary_fill_holes(mask)).all()
    assert filled.cells.sum() == mask.sum()


def test_a_hole_closed_by_corners_is_filled_and_an_open_one_is_not() -> None:
    ring = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=np.bool_)
    assert len(fill_holes(trace([ring]))) == 3
    ring[0, 1] = False
    assert (painted(fill_holes(trace([ring]))) == ring).all()


@settings(deadline=None, max_examples=100)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.floats(0, 1, width=32)),
    st.integers(1, 13),
    st.sampled_from([0.25, 0.5, 0.9]),
)
def test_values_and_crossings_do_not_depend_on_the_bands(
    values: NDArray[np.float32], band_rows: int, threshold: float
) -> None:
    whole = trace([values], threshold=threshold)
    cut = trace(bands_of(values, band_rows=band_rows), threshold=threshold)
    for name in ("rows", "starts", "stops", "cells", "sums", "highs", "lows", "crossings", "crossing_spans"):
        assert np.array_equal(getattr(whole, name), getattr(cut, name)), name
    inside = values >= threshold
    assert whole.sums.sum() == pytest.approx(values[inside].astype(np.float64).sum())
    padded = np.pad(inside, 1)
    outer = sum(int((padded & ~np.roll(padded, step, axis)).sum()) for axis in (0, 1) for step in (-1, 1))
    assert whole.crossings is not None
    assert len(whole.crossings) == outer


def test_a_zarr_array_is_read_in_its_chunks() -> None:
    import zarr  # noqa: PLC0415

    mask = np.random.default_rng(1).random((70, 90)) < 0.4
    stored = zarr.create_array({}, shape=mask.shape, chunks=(16, 32), dtype=bool)
    stored[...] = mask
    assert (painted(trace(bands_of(stored))) == mask).all()
    assert (painted(trace(bands_of(stored, band_rows=5))) == mask).all()


def test_pairs_do_not_depend_on_how_many_spans_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(5).random((60, 70)) < 0.5
    spans = trace([mask])
    labels, holes = label_spans(spans), painted(fill_holes(spans))
    monkeypatch.setattr(components, "_SPANS_AT_ONCE", 3)
    assert np.array_equal(label_spans(spans), labels)
    assert np.array_equal(painted(fill_holes(spans)), holes)


def test_nothing_there() -> None:
    spans = trace([np.zeros((3, 4), dtype=np.bool_)])
    assert (len(spans), spans.shape) == (0, (3, 4))
    assert len(fill_holes(spans)) == len(label_spans(spans)) == 0


def test_misuse() -> None:
    with pytest.raises(ValueError, match="at least one band"):
        trace([])
    with pytest.raises(ValueError, match="of one width"):
        trace([np.zeros((1, 2), dtype=np.bool_), np.zeros((1, 3), dtype=np.bool_)])
    with pytest.raises(ValueError, match="a mask is bool"):
        trace([np.zeros((1, 2), dtype=np.uint8)])
    with pytest.raises(ValueError, match="at least 1 row"):
        list(bands_of(np.zeros((2, 2)), band_rows=0))
    with pytest.raises(ValueError, match="rows, columns"):
        list(bands_of(np.zeros((2, 2, 3))))
