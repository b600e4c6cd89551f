from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from staging.errors import TableError
from staging.lesions.detections import RADIUS_UM, Detections, detections_of, read_detections, write_detections
from wsi.errors import ResolutionError
from wsi.geometry import Frame
from wsi.raster import Heatmap


def heatmap(array: NDArray[np.float32], *, mpp: float | None = 0.243) -> Heatmap:
    shape = (array.shape[0], array.shape[1])
    frame = Frame(x=100.0, y=-50.0, downsample=64.0, shape=shape, mpp=mpp)
    return Heatmap(frame=frame, array=array, tissue=np.ones(shape, dtype=np.bool_))


def rows_of(found: Detections) -> list[tuple[float, float, float]]:
    return list(zip(found.probability.tolist(), found.x.tolist(), found.y.tolist(), strict=True))


def by_searching_again(array: NDArray[np.float32], threshold: float, radius: float) -> list[tuple[int, int]]:
    """The teams' loop: find the highest cell, emit it, clear the disc, as long as it is above the threshold."""
    left = array.copy()
    rows, columns = np.indices(array.shape)
    found = []
    while left.max() > threshold:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        found.append((int(row), int(column)))
        left[np.hypot(rows - row, columns - column) <= radius] = 0
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0, 15),
    st.sampled_from([0.0, 0.5, 0.9]),
)
def test_agrees_with_searching_again(seed: int, height: int, width: int, radius: float, threshold: float) -> None:
    random = np.random.default_rng(seed)
    array = (random.integers(0, 12, (height, width)) / 11).astype(np.float32)
    found = detections_of(heatmap(array), threshold=threshold, radius_um=radius * 0.243 * 64)
    expected = by_searching_again(array, threshold, radius + 1e-9)
    assert [(int((y + 50) / 64), int((x - 100) / 64)) for _, x, y in rows_of(found)] == expected
    assert found.probability.tolist() == [float(array[where]) for where in expected]
    assert ((found.x - 100) % 64 == 32).all()


def test_the_usual_radius_is_12_cells() -> None:
    array = np.zeros((1, 30), dtype=np.float32)
    array[0, [0, 12, 13, 29]] = 0.9, 0.8, 0.7, 0.5
    assert pytest.approx(12 * 15.552) == RADIUS_UM
    assert [row[0] for row in rows_of(detections_of(heatmap(array)))] == [
        pytest.approx(0.9),
        pytest.approx(0.7),
    ]


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"threshold": -0.1}, {"radius_um": -1.0}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="the threshold must be"):
        detections_of(heatmap(np.zeros((2, 2), dtype=np.float32)), **options)


def test_the_resolution_must_be_known() -> None:
    with pytest.raises(ResolutionError):
        detections_of(heatmap(np.zeros((2, 2), dtype=np.float32), mpp=None))


rows = st.lists(st.tuples(st.floats(0, 1), st.floats(-1e6, 1e6), st.floats(0, 1e6)), max_size=20)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, given_rows: list[tuple[float, float, float]]
) -> None:
    path = tmp_path_factory.mktemp("detections") / "test_001.csv"
    write_detections(path, Detections.of(given_rows))
    whole = [(probability, math.floor(x), math.floor(y)) for probability, x, y in given_rows]
    assert rows_of(read_detections(path)) == whole
    as_organisers = [line.rstrip().split(",") for line in path.read_text().splitlines()]
    assert [(float(probability), int(x), int(y)) for probability, x, y in as_organisers] == whole


def test_no_detections_are_an_empty_file(tmp_path: Path) -> None:
    write_detections(tmp_path / "none.csv", Detections.of([]))
    assert (tmp_path / "none.csv").read_bytes() == b""
    assert rows_of(read_detections(tmp_path / "none.csv")) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"0.5,10,20\n", [(0.5, 10, 20)]),
        (b"0.5,10,20", [(0.5, 10, 20)]),
        (b"0.5,10,20\r\n1,30.75,4e1\r\n", [(0.5, 10, 20), (1, 30.75, 40)]),
        (b"\xef\xbb\xbf0.5,10,20\n", [(0.5, 10, 20)]),
        (b" 0.5 , 10 ,\t20 \n\n", [(0.5, 10, 20)]),
        (b"p,x,y\n0.5,10,20\n", [(0.5, 10, 20)]),
        (b"Probability, X, Y\n", []),
        (b"\n\n", []),
        (b"0.5,10,20,more\n", [(0.5, 10, 20)]),
        (b"1e-9,-3,+7.\n", [(1e-9, -3, 7)]),
    ],
)
def test_forms_of_a_table(tmp_path: Path, data: bytes, expected: list[tuple[float, float, float]]) -> None:
    (tmp_path / "d.csv").write_bytes(data)
    assert rows_of(read_detections(tmp_path / "d.csv")) == expected


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0.5,10", "not a probability and two numbers"),
        ("0.5;10;20", "not a probability and two numbers"),
        ("0.5,10,abc", "not a probability and two numbers"),
        ("nan,10,20", "not a probability and two numbers"),
        ("0.5,inf,20", "not a probability and two numbers"),
        ("0.5,1_0,20", "not a probability and two numbers"),
        ("0.5,1e999,20", "not a probability and two numbers"),
        ("0.5,,20", "not a probability and two numbers"),
        ("10,20,0.5", "probability from 0 to 1"),
        ("-0.1,10,20", "probability from 0 to 1"),
        ("1.0001,10,20", "probability from 0 to 1"),
        ('"0.5,10,20', "is not a CSV"),
    ],
)
def test_bad_lines_are_refused_by_number(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "d.csv").write_text(f"0.5,10,20\n\n{line}\n0.4,1,1\n")
    with pytest.raises(TableError, match=reason) as caught:
        read_detections(tmp_path / "d.csv")
    assert caught.value.where in ("line 3", "line 5")
    assert str(tmp_path / "d.csv") in str(caught.value)


@pytest.mark.parametrize("header", ["x,y,p", "p,y,x", "probability", "slide,probability", "p;x;y"])
def test_other_headers_are_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "d.csv").write_text(f"{header}\n0.5,10,20\n")
    with pytest.raises(TableError, match="not with a detection"):
        read_detections(tmp_path / "d.csv")


@pytest.mark.parametrize("data", [b"\xff0\x00", None])
def test_unreadable_tables_are_refused(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "d.csv").write_bytes(data)
    with pytest.raises(TableError, match=r"UTF-8|no such file"):
        read_detections(tmp_path / "d.csv")


def test_the_organisers_example(real_data: Callable[[str], Path]) -> None:
    found = read_detections(real_data("tables/c16_example_submission_lesions.csv"))
    assert rows_of(found)[0] == (0.9999541, 24832, 13056)
    assert found.where(0) == "line 2"
    assert found.probability.size > 4


@pytest.mark.parametrize("row", [(1.5, 0, 0), (float("nan"), 0, 0), (0.5, float("inf"), 0)])
def test_detections_are_checked(row: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="detections"):
        Detections.of([row])
