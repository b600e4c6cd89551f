from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from staging.cohorts.names import centre_name, slide_key
from staging.cohorts.references import read_normal_slides, read_predictions, read_truth
from staging.csv_rows import csv_for_people
from staging.errors import ConflictError, TableError, UnknownLabelError


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "table.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


Write = Callable[[str | bytes], Path]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test_001,Tumor,IDC,Macro\ntest_003,Normal,None,None\n", {"test_001": True, "test_003": False}),
        ("Test_001.tif, TUMOR ,IDC,Macro\r\ntest_003,normal,None,None", {"test_001": True, "test_003": False}),
        (b"\xef\xbb\xbftest_001,Tumor,x,y\n\n", {"test_001": True}),
        ("slide,label\na,negative\nb,itc\nc,micro\nd,macro\n", {"a": False, "b": True, "c": True, "d": True}),
        ("slide,label,largest_um\na.svs,negative,0\nb,1,2\nc,0,0\n", {"a": False, "b": True, "c": False}),
        ("image,type\na,Tumour\n", {"a": True}),
        ("patient,stage\npatient_000.zip,pN0\npatient_000_node_1.tif,itc\n", {"patient_000_node_1": True}),
        ("a,Tumor\na,Tumor\n", {"a": True}),
    ],
)
def test_truth(table: Write, text: str | bytes, expected: dict[str, bool]) -> None:
    assert read_truth(table(text)) == expected


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("", TableError, "no row for a slide"),
        ("slide,label\n", TableError, "no row for a slide"),
        ("a,Tumor\nb,Cancer\n", UnknownLabelError, r"line 2: unknown label 'Cancer'"),
        ("a,Tumor\nb\n", TableError, r"line 2: the row 'b' is not"),
        ("a,Tumor\n,Normal\n", TableError, r"line 2"),
        ("a,Tumor\nb,Normal\nA.tif,Normal\n", ConflictError, r"lines 1 and 3: a is True and then False"),
        ("a;Tumor\nb,Tumor\n", TableError, "line 1"),
    ],
)
def test_bad_truth_is_refused(table: Write, text: str, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        read_truth(table(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("test_001,0.25\ntest_002,1e-3\n", {"test_001": 0.25, "test_002": 0.001}),
        ("slide,probability\nTest_001.tif,0.25\r\n", {"test_001": 0.25}),
        ("slide,label,largest_um,lesions,probability\na,negative,0.0,0,0.125\n", {"a": 0.125}),
        ("name,p\na,-3.5\n", {"a": -3.5}),
        ("a,1\na,1.0\n", {"a": 1.0}),
    ],
)
def test_predictions(table: Write, text: str, expected: dict[str, float]) -> None:
    assert read_predictions(table(text)) == expected


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("", TableError, "no row for a slide"),
        ("a,0.5\nb,high\n", TableError, "line 2"),
        ("a,nan\n", TableError, "not with slide,probability"),
        ("a,0.5\nb,nan\n", TableError, "line 2"),
        ("a,0.5\nb\n", TableError, "line 2"),
        ("slide,label\na,0.5\n", TableError, "not with slide,probability"),
        ("id,probability\na,0.5\n", TableError, "not with slide,probability"),
        ("slide,x,probability\na,0.5\n", TableError, "line 2"),
        ("a,0.5\na,0.6\n", ConflictError, "lines 1 and 2"),
    ],
)
def test_bad_predictions_are_refused(table: Write, text: str, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        read_predictions(table(text))


def test_normal_slides(table: Write) -> None:
    assert read_normal_slides(table("normal_001\nNormal_002.tif\n")) == {"normal_001", "normal_002"}
    assert read_normal_slides(table("a,Tumor,x,y\nb,Normal,None,None\n")) == {"b"}
    assert read_normal_slides(table("")) == frozenset()


@pytest.mark.parametrize(
    ("slide", "centre"),
    [
        ("patient_000_node_0", "CWZ"),
        ("patient_039_node_4.tif", "RST"),
        ("patient_140_node_0", "UMCU"),
        ("patient_060_node_0", "RUMC"),
        ("patient_199_node_0", "LPON"),
        ("patient_200_node_0", None),
        ("normal_100", "RUMC"),
        ("Normal_101.tif", "UMCU"),
        ("tumor_070", "RUMC"),
        ("tumor_071", "UMCU"),
        ("test_001", None),
        ("anything", None),
    ],
)
def test_centres(slide: str, centre: str | None) -> None:
    assert centre_name(slide) == centre


def test_centres_are_those_of_the_published_table(real_data: Callable[[str], Path]) -> None:
    by_number = {
        "CAMELYON16": {"0": "RUMC", "2": "UMCU"},
        "CAMELYON17": dict(zip("01234", ("CWZ", "RST", "UMCU", "RUMC", "LPON"), strict=True)),
    }
    rows = [
        line.replace('"', "").split(",") for line in real_data("tables/slides_centres.csv").read_text().splitlines()
    ]
    slides = [row for row in rows if len(row) > 4 and row[3] in by_number]
    assert len(slides) == 770
    for row in slides:
        assert centre_name(Path(row[0]).name) == by_number[row[3]][row[4]]


def test_semicolons_and_decimal_commas_of_a_spreadsheet_are_read(table: Write) -> None:
    assert read_truth(table("slide;label\r\na;Tumor\r\nb;Normal\r\n")) == {"a": True, "b": False}
    assert read_predictions(table("a;0,25\nb;1,5e-3\nc;1\n")) == {"a": 0.25, "b": 0.0015, "c": 1.0}
    assert read_predictions(table("slide;probability\na;,5\n")) == {"a": 0.5}
    with pytest.raises(TableError, match=r"begins with 'a;0\.5'"):
        read_predictions(table("a;0.5\nb,0.5\n"))


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nslide;probability\na;0,25\nb;0,5\n",
        "slide\tprobability\r\na\t0.25\r\nb\t0.5\r\n",
        "slide,patient,probability\na,P;1,0.25\nb,P;1,0.5\n",
        "a;0.25\nb;0.5\n",
    ],
)
def test_what_spreadsheets_write_is_read(table: Write, text: str) -> None:
    assert read_predictions(table(text)) == {"a": 0.25, "b": 0.5}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_the_unicode_text_of_a_spreadsheet_is_read(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("e") else ""
    (tmp_path / "t.csv").write_bytes(f"{mark}slide\tprobability\r\nh\u00e9\t0.25\r\n".encode(encoding))
    assert read_predictions(tmp_path / "t.csv") == {"h\u00e9": 0.25}
    (tmp_path / "t.csv").write_bytes("slide,probability\nh\u00e9,0.25\n".encode("latin-1"))
    with pytest.raises(TableError, match="is not UTF-8 text"):
        read_predictions(tmp_path / "t.csv")


def test_a_semicolon_within_a_cell_separates_nothing(table: Write) -> None:
    assert read_predictions(table("s;1.tif,0.25\nt;1.tif,0.5\n")) == {"s;1": 0.25, "t;1": 0.5}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("slide,probability,probability\na,0.1,0.9\n", "two columns 'probability'"),
        ("a,0.1,0.9\nb,0.2,0.8\n", "one probability, and no header names more columns"),
    ],
)
def test_which_of_two_columns_is_meant_is_not_guessed(table: Write, text: str, reason: str) -> None:
    with pytest.raises(TableError, match=reason):
        read_predictions(table(text))


def test_names_are_compared_without_suffix_and_case() -> None:
    assert {slide_key(name) for name in ("Test_001.tif", "test_001", "TEST_001.CSV")} == {"test_001"}
    assert slide_key("slide.v2") == "slide.v2"


def test_a_table_for_people_holds_no_formula_and_no_control_character(tmp_path: Path) -> None:
    cells = ["=1+1", "+x", "-x", "@x", "a\x1b[31m", "a\nb", "caf\udce9", "plain - text", 3, -1.5]
    path = tmp_path / "t.csv"
    path.write_text(csv_for_people(("cell",), [[cell] for cell in cells]), encoding="utf-8")
    found = [row[0] for row in csv.reader(path.open(encoding="utf-8"))][1:]
    assert found == [
        *("'=1+1", "'+x", "'-x", "'@x", r"a\x1b[31m", r"a\nb", r"caf\udce9", "plain - text", "3", "-1.5"),
    ]
