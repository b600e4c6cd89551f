"""Slides of any name are staged if a table says whose they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from staging.cli import app
from staging.cohorts.patients import PatientTable, read_patients
from staging.cohorts.references import read_predictions
from staging.errors import ConflictError, SlideNameError, TableError
from staging.lesions.labels import SlideLabel
from staging.phantom import generate_cohort
from staging.stages.pn import stage_patient, stage_patients
from wsi.cnn.checkpoint import save_checkpoint

NAMES = [f"S21-1234_A{node}" for node in range(5)]


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "map.csv").write_text(text)
        return tmp_path / "map.csv"

    return write


def test_a_table_of_patients(table: Callable[[str], Path]) -> None:
    found = read_patients(table("Slide,Patient\nA.tif,P1\nb,P1\na,P1\nc,P2\n"))
    assert {name: found.of(name) for name in ("A.tif", "b", "c.svs", "patient_003_node_2.tif")} == {
        "A.tif": ("P1", 0),
        "b": ("P1", 1),
        "c.svs": ("P2", 0),
        "patient_003_node_2.tif": ("patient_003", 2),
    }
    with pytest.raises(SlideNameError, match="no row for the slide 'd'"):
        found.of("d")
    with_nodes = read_patients(table("a,P1,left\nb,P1,right\nc,P1,left\n"))
    assert [with_nodes.of(name)[1] for name in "abc"] == [0, 1, 0]
    with pytest.raises(ConflictError, match="lines 1 and 2: a is"):
        read_patients(table("a,P1\nA.svs,P2\n"))
    for text, reason in (("a,\n", "line 1: the row 'a,' is not"), ("", "has no row for a slide")):
        with pytest.raises(TableError, match=reason):
            read_patients(table(text))


@pytest.mark.parametrize(
    "text",
    [
        "slide,patient,stain,node\ns1,P1,HE,1\ns2,P1,HE,2\ns3,p1,HE,3\n",
        "Stain,Node,Patient,Slide\nHE,1,P1,s1\nHE,2,P1,s2\nHE,3,p1,s3\n",
    ],
)
def test_columns_are_found_by_their_names(table: Callable[[str], Path], text: str) -> None:
    found = read_patients(table(text))
    assert [found.of(name) for name in ("s1", "s2", "s3")] == [("P1", 0), ("P1", 1), ("P1", 2)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("slide,node\na,1\n", "no column patient"),
        ("patient,node\na,1\n", "no column slide"),
        ("slide,patient,patient\na,b,c\n", "two columns 'patient'"),
        ("a,P1,1,HE\n", "further columns need a header"),
    ],
)
def test_headers_that_do_not_say_it(table: Callable[[str], Path], text: str, reason: str) -> None:
    with pytest.raises(TableError, match=reason):
        read_patients(table(text))


def test_a_patient_of_camelyon_that_the_table_lists_in_part_is_not_staged(table: Callable[[str], Path]) -> None:
    names = [f"patient_000_node_{node}" for node in range(5)]
    labels_of = dict(zip(names, [SlideLabel.MACRO] * 4 + [SlideLabel.NEGATIVE], strict=True))
    nodes = read_patients(table("slide,patient,node\npatient_000_node_3,Patient_000,3\n"))
    found = stage_patients(labels_of, nodes=nodes)
    assert found.stages == {}
    (one,) = found.unscored
    assert (one.patient, "lists some of its slides, but not patient_000_node_0" in one.reason) == ("patient_000", True)


def test_a_missing_slide_is_named_as_the_table_does(table: Callable[[str], Path]) -> None:
    nodes = read_patients(table("S21_A1.tif,P1\nS21_B9.TIF,P1\n"))
    (one,) = stage_patients({"s21_a1": SlideLabel.MACRO}, nodes=nodes).unscored
    assert one.reason == "missing S21_B9.TIF"


def test_patients_without_any_slide_are_named(table: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("slide,label\nA1,macro\n")
    path = table("slide,patient\nA1,P1\nA9,P3\n")
    done = called("stage", tmp_path / "labels.csv", "-o", tmp_path / "o.csv", "--patients", path)
    assert (done.exit_code, json.loads(done.stdout)["without_slides"]) == (0, ["P3"])
    assert "no slide is labelled of patients" in done.stderr


labels = st.sampled_from(SlideLabel)


@given(st.lists(st.lists(labels, min_size=1, max_size=4), min_size=1, max_size=6))
def test_a_patient_is_staged_by_the_largest_label_of_each_node(nodes: list[list[SlideLabel]]) -> None:
    slides = {f"s{i}_{j}": label for i, node in enumerate(nodes) for j, label in enumerate(node)}
    of = {name: ("P", int(name[1:].partition("_")[0])) for name in slides}
    found = stage_patients(slides, nodes=PatientTable(nodes=of, path=Path("map.csv")))
    assert found.stages == {"P": stage_patient(max(node) for node in nodes)}
    without = dict(list(slides.items())[1:])
    if without:
        (unscored,) = stage_patients(without, nodes=PatientTable(nodes=of, path=Path("map.csv"))).unscored
        assert unscored.reason == "missing s0_0"


def test_names_say_what_the_table_does_not() -> None:
    five = {f"patient_004_node_{node}": SlideLabel.ITC for node in range(5)}
    nodes = PatientTable(nodes={"x": ("P", 0)}, path=Path("map.csv"))
    assert stage_patients({**five, "x.tif": SlideLabel.MACRO}, nodes=nodes).stages == {
        "patient_004": stage_patient([SlideLabel.ITC]),
        "P": stage_patient([SlideLabel.MACRO]),
    }
    four = dict(list(five.items())[1:])
    assert stage_patients(four, nodes=nodes).unscored[0].reason == "missing node_0"


@pytest.mark.slow
def test_a_clinics_slides_become_what_camelyons_do(tmp_path: Path, make_checkpoint: Callable[..., Any]) -> None:
    generate_cohort(tmp_path / "cohort", patients=1, centres=(0,), seed=7, mpp=8.0)
    patient = "patient_000"
    (tmp_path / "clinic").mkdir()
    for node, name in enumerate(NAMES):
        shutil.copy(tmp_path / "cohort" / "images" / f"{patient}_node_{node}.tif", tmp_path / "clinic" / f"{name}.tif")
    table = tmp_path / "map.csv"
    table.write_text("slide,patient,node\n" + "".join(f"{name}.tif,S21-1234,{i}\n" for i, name in enumerate(NAMES)))
    save_checkpoint(tmp_path / "m.safetensors", make_checkpoint(mpp=8.0))
    reference = tmp_path / "reference.csv"
    reference.write_text("patient,stage\nS21-1234.zip,pN1\n")
    model = ("-m", tmp_path / "m.safetensors", "--threshold", 0.3, "--peak", 0.3, "--workers", 1)
    theirs = called("run", tmp_path / "cohort" / "images", "-o", tmp_path / "theirs", *model)
    ours = called("run", tmp_path / "clinic", "-o", tmp_path / "ours", *model, "--patients", table, "-r", reference)
    assert (theirs.exit_code, ours.exit_code) == (0, 0), ours.output
    stage = json.loads(theirs.stdout)["stages"][patient]
    assert json.loads(ours.stdout)["stages"] == {"S21-1234": stage}
    expected = (tmp_path / "theirs" / "stages.csv").read_text().replace(f"{patient}.zip", "S21-1234.zip")
    for node, name in enumerate(NAMES):
        expected = expected.replace(f"{patient}_node_{node}.tif", name)
    assert (tmp_path / "ours" / "stages.csv").read_text() == expected
    assert "S21-1234" in (tmp_path / "ours" / "report.html").read_text()
    called("submission", "write", "slides", tmp_path / "ours", "-o", tmp_path / "predictions.csv")
    assert read_predictions(tmp_path / "ours" / "labels.csv") == read_predictions(tmp_path / "predictions.csv")
    staged = called("stage", tmp_path / "ours" / "labels.csv", "-o", tmp_path / "s.csv", "--patients", table)
    assert staged.exit_code == 0
    assert (tmp_path / "s.csv").read_text() == expected
    assert called("score", "kappa", reference, tmp_path / "s.csv", "--resamples", 0).exit_code == 0
    alone = called("run", tmp_path / "clinic", "-o", tmp_path / "alone", *model)
    assert sorted(json.loads(alone.stdout)["unscored"]) == NAMES
    assert alone.exit_code == 0  # nothing says that they should be
    assert f"not staged: {', '.join(sorted(NAMES))}" in (tmp_path / "alone" / "report.html").read_text()
    table.write_text(f"slide,patient\n{NAMES[0]},S21-1234\n")
    some = called("run", tmp_path / "clinic", "-o", tmp_path / "alone", *model, "--patients", table)
    assert (some.exit_code, list(json.loads(some.stdout)["stages"])) == (3, ["S21-1234"])


def test_without_a_table_it_is_said_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("slide,label\nS21-1.tif,macro\n")
    done = called("stage", tmp_path / "labels.csv", "-o", tmp_path / "s.csv")
    assert done.exit_code == 3
    assert "does not give patient and node" in done.stderr
