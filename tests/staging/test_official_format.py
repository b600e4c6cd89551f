"""What the organisers' scripts cannot read is refused by check, and said by score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from staging.cli import app
from staging.cohorts.official_format import fault_of_detections, faults_of_stages
from staging.cohorts.submission import Task, check_submission
from staging.errors import TableError

PATIENTS = [f"patient_{number:03d}" for number in range(4)]


def read_as_the_organisers(path: Path) -> int:
    """The parsing of readCSVContent in Evaluation_FROC.py, on Python 3; the number of rows."""
    lines = path.open(encoding="utf-8").readlines()
    for line in lines:
        cells = line.rstrip().split(",")
        float(cells[0])
        if min(int(cells[1]), int(cells[2])) < 0:
            raise ValueError("wraps around")
    return len(lines)


cells = st.sampled_from(
    ["0.5", "1", "1e3", "12", "12.0", " 7", "7 ", "-3", "", "x", "nan", "1_000", '"4"', "\ufeff1", "٣", "0x1f", "9;8"]
)


@given(
    st.lists(st.lists(cells, min_size=1, max_size=4).map(",".join), max_size=3),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", "end"]),
)
@example([], "\n", "")
@example(["0.5,1,2", ""], "\n", "end")
def test_detections_are_faulty_where_the_script_stops(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], newline: str, end: str
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    path.write_bytes((newline.join(rows) + (newline if end else "")).encode())
    fault = fault_of_detections(path)
    try:
        read_as_the_organisers(path)
    except (ValueError, IndexError):
        assert fault is not None
    else:
        assert fault is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("0.9,12.5,30", "x '12.5'"),
        ("0.9,12,1e3", "y '1e3'"),
        ("0.9,-12,30", "negative x"),
        ("p,x,y", "begins with 'p'"),
        ("0.9;12;30", "not probability,x,y"),
    ],
)
def test_detections_that_only_we_read(tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "test_001.csv").write_text(f"{row}\n0.5,10,10\n")
    with pytest.raises(TableError, match="line 1") as caught:
        check_submission(Task.LESIONS, tmp_path / "found")
    assert said in str(caught.value) or "line 1" in str(caught.value)
    fault = fault_of_detections(tmp_path / "found" / "test_001.csv")
    assert fault is not None
    assert said in fault.reason
    assert fault.line == 1


def stages(path: Path, *changes: tuple[str, str]) -> Path:
    text = "patient,stage\n" + "".join(f"{name}.zip,pN1\n{name}_node_0.tif,macro\n" for name in PATIENTS)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("patient_002.zip", "Patient_002.zip", "not patient_002.zip"),
        ("patient_002.zip", "patient_002.ZIP", "not patient_002.zip"),
        ("patient_002.zip", " patient_002.zip", "not patient_002.zip"),
        ("patient_002.zip", "patient_002.zip ", "not patient_002.zip"),
        ("patient_002.zip,pN1", "patient_002.zip, pN1", "the stage ' pN1'"),
        ("patient_002.zip,pN1", "patient_002.zip,pN1 ", "the stage 'pN1 '"),
        ("patient,stage\n", "patient;stage\n", "one column"),
        ("patient_002.zip,pN1", "patient_002.zip,pN1,", "more cells than the header"),
        ("pN1\n", "pN1,\n", "more cells than the header"),
        ("macro\n", "macro,,,\n", "more cells than the header"),
    ],
)
def test_stages_that_only_we_read(tmp_path: Path, old: str, new: str, said: str) -> None:
    right, wrong = stages(tmp_path / "right.csv"), stages(tmp_path / "wrong.csv", (old, new))
    if ";" in new:
        wrong.write_text(wrong.read_text().replace(",", ";"))
    assert not [*faults_of_stages(right, {f"{name}.zip" for name in PATIENTS})]
    assert check_submission(Task.STAGES, right).entries == 4
    (first, *_) = faults_of_stages(wrong)
    assert said in first.reason
    with pytest.raises(TableError, match=f"line {first.line}"):
        check_submission(Task.STAGES, wrong)
    done = CliRunner().invoke(app, ["score", "kappa", str(right), str(wrong)])
    assert done.exit_code == 0, done.output
    assert "the organisers' script would give no score" in done.stderr
    assert any(said in warning for warning in json.loads(done.stdout)["warnings"])


def test_any_case_of_stages_is_official_and_so_are_other_rows(tmp_path: Path) -> None:
    path = stages(tmp_path / "a.csv", ("patient_001.zip,pN1", "patient_001.zip,PN1"), ("_node_0.tif", "_node_0.TIF"))
    assert not [*faults_of_stages(path)]
    path = stages(tmp_path / "b.csv", ("patient_001.zip", "Anna.zip"))
    assert [*faults_of_stages(path)]
    assert not [*faults_of_stages(path, {"Anna.zip"})]


def test_a_table_without_header_loses_its_first_patient(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("patient_000.zip,pN0\npatient_001.zip,pN1\n")
    (fault,) = faults_of_stages(path)
    assert (fault.line, "lost" in fault.reason) == (1, True)


def test_the_organisers_own_files_are_read(real_data: Callable[[str], Path]) -> None:
    assert not [*faults_of_stages(real_data("tables/camelyon17_stage_labels.csv"))]


def test_a_header_as_in_the_example_of_the_challenge_stops_their_own_script(real_data: Callable[[str], Path]) -> None:
    path = real_data("tables/c16_example_submission_lesions.csv")
    with pytest.raises(ValueError, match="could not convert"):
        read_as_the_organisers(path)
    fault = fault_of_detections(path)
    assert fault is not None
    assert fault.line == 1
