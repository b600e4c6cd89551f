from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from annotations.annotation import Annotation, Role
from annotations.files.asap import write_asap
from staging.commands.score import app
from staging.errors import (
    CohortError,
    ConfigurationError,
    ConflictError,
    MissingPatientError,
    StagingError,
    TableError,
    UnknownLabelError,
)
from staging.scores.intervals import wilson
from staging.scores.lesion_task import score_folders


def scored(*arguments: str | Path) -> tuple[dict[str, Any], str]:
    """The one JSON object on stdout, without nan, and what stands on stderr."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output

    def refuse(name: str) -> None:
        pytest.fail(f"{name} in the JSON")

    record: dict[str, Any] = json.loads(done.stdout, parse_constant=refuse)
    return record, done.stderr


def refused(error: type[StagingError], reason: str, *arguments: str | Path) -> StagingError:
    with pytest.raises(error, match=reason) as caught:
        CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return caught.value


def is_picture(path: Path) -> bool:
    with Pillow.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    return path.suffix == ".png" and min(pixels.shape) > 200 and 0 < (pixels < 128).mean() < 0.5


# --- kappa ----------------------------------------------------------------------------------------------------------

STAGES = ["pN0", "pN0(i+)", "pN1mi", "pN1", "pN2"]


def stage_table(path: Path, stages: list[str]) -> Path:
    rows = [f"patient_{number:03d}.zip,{stage}" for number, stage in enumerate(stages)]
    path.write_text("\n".join(["patient,stage", *rows]) + "\n")
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return stage_table(tmp_path / "reference.csv", STAGES * 8)


def test_kappa(tmp_path: Path, reference: Path) -> None:
    good = stage_table(tmp_path / "good.csv", (STAGES[1:] + STAGES[-1:]) * 2 + STAGES * 6)
    poor = stage_table(tmp_path / "poor.csv", STAGES[::-1] * 4 + STAGES * 4)
    picture = tmp_path / "deep" / "kappa.png"
    record, text = scored("kappa", reference, good, "--against", poor, "--table", "--picture", picture)
    assert 0.9 < record["kappa"] < 1
    assert list(record["centres"]) == ["CWZ", "RST"]
    assert record["centres"]["RST"]["kappa"] == 1.0
    (against,) = record["against"]
    assert (against["submission"], against["comparisons"]) == (str(poor), 1)
    assert against["difference"] == pytest.approx(record["kappa"] - against["kappas"][1])
    assert against["p_value"] == against["p_adjusted"] < 0.05
    assert "pN0(i+)" in text
    assert "quadratic kappa 0.9" in text
    assert f"minus {poor}: difference of kappa " in text
    assert is_picture(picture)


def test_kappa_of_the_real_table(real_data: Callable[[str], Path]) -> None:
    table = real_data("tables/camelyon17_stage_labels.csv")
    record, text = scored("kappa", table, table, "--resamples", "100")
    # 100 patients of whom none was staged wrongly: up to 3.6 % may be
    assert (record["kappa"], record["bootstrap"]) == (1.0, [1.0, 1.0])
    assert record["interval"] == pytest.approx([0.9906, 1.0], abs=1e-4)
    assert record["heterogeneity"]["p_value"] > 0.9
    centres = "CWZ, RST, UMCU, RUMC, LPON"
    assert record["warnings"] == [
        f"{centres}: all agree: the interval's lower end takes errors that were not seen to be of one stage",
        f"{centres}: fewer than 30 patients say little about a centre",
    ]
    told = "quadratic kappa 1.0000 (95 % interval 0.9906 to 1.0000), 100 patients"
    assert text.splitlines() == [f"sentinode: {line}" for line in (*record["warnings"], told)]
    assert [centre["patients"] for centre in record["centres"].values()] == [20] * 5


@pytest.mark.parametrize(
    ("text", "kappa"),
    [
        ("patient,stage\npatient_000.zip,pN0\npatient_001.zip,pN2\n", 1.0),
        ("\ufeffpatient,stage\r\n PATIENT_000.ZIP , PN0 \r\npatient_001.zip,pn2\r\n", 1.0),
        ("patient,stage\npatient_000.zip,pN2\npatient_001.zip,pN2\npatient_000.zip,pN0\n", 1.0),
        ("patient,stage\npatient_000.zip,pN0\npatient_001.zip,pN2\npatient_000.zip,pN2\n", 0.0),
        ("patient,stage\npatient_000.zip,pN0\npatient_001.zip,pN2\npatient_009.zip,pN1\n", 1.0),
        ("patient,stage\npatient_000.zip,pN0\npatient_001.zip,pN2\npatient_000_node_0.tif,macro\n", 1.0),
        ("patient,stage\npatient_000.zip,pN2\npatient_001.zip,pN0\n", -1.0),
        ("patient,stage\npatient_000.zip,pN1\npatient_001.zip,pN1\n", 0.0),
    ],
)
def test_kappa_of_odd_tables(tmp_path: Path, text: str, kappa: float) -> None:
    truth = stage_table(tmp_path / "reference.csv", ["pN0", "pN2"])
    (tmp_path / "s.csv").write_bytes(text.encode())
    record, _ = scored("kappa", truth, tmp_path / "s.csv", "--resamples", "10")
    assert record["kappa"] == pytest.approx(kappa, abs=1e-12)


def test_of_two_rows_of_a_patient_the_last_counts_and_is_reported(tmp_path: Path, reference: Path) -> None:
    right = stage_table(tmp_path / "right.csv", STAGES * 8)
    twice = tmp_path / "twice.csv"
    twice.write_text(right.read_text() + "PATIENT_003.zip,pN0\npatient_004.zip,pN2\npatient_003.zip,pN1\n")
    record, text = scored("kappa", reference, twice, "--against", twice)
    assert record["kappa"] == 1.0
    told = [
        f"{twice}: patient_003 has rows in lines 5, 42, 44: the last counts (pN1)",
        f"{twice}: patient_004 has rows in lines 6, 43: the last counts (pN2)",
    ]
    assert record["warnings"][:4] == told * 2
    assert all("line 42: 'PATIENT_003.zip' is not patient_003.zip" in one for one in record["warnings"][4:6])
    assert f"sentinode: {told[0]}" in text
    assert scored("kappa", reference, right)[0]["warnings"] == record["warnings"][6:-1]
    refused(ConflictError, "lines 5 and 42", "kappa", twice, right)


@pytest.mark.parametrize(
    ("truth", "found", "warning"),
    [
        (["pN1"] * 30, ["pN1"] * 30, "kappa is undefined: every patient is pN1 in both tables"),
        (["pN1"] * 30, STAGES * 6, "kappa is 0 whatever is submitted: every patient is pN1 in the reference"),
        (STAGES * 6, ["pN1"] * 30, "kappa is 0: every patient is pN1 in the submission"),
        (STAGES[:4], STAGES[1:], "the interval is rough: there are only 4 patients"),
        (["pN0"] * 29 + ["pN2"], ["pN0"] * 29 + ["pN1"], "resamples have all patients in one class and no kappa"),
    ],
)
def test_what_says_little_is_said_to(tmp_path: Path, truth: list[str], found: list[str], warning: str) -> None:
    tables = stage_table(tmp_path / "a.csv", truth), stage_table(tmp_path / "b.csv", found)
    record, text = scored("kappa", *tables, "--resamples", "1000")
    assert any(warning in one for one in record["warnings"])
    assert warning in text
    assert any(warning in one for one in record["centres"]["CWZ"]["warnings"]) or len(truth) == 30


def test_a_sound_score_has_no_warning(tmp_path: Path) -> None:
    tables = stage_table(tmp_path / "a.csv", STAGES * 4), stage_table(tmp_path / "b.csv", STAGES[::-1] + STAGES * 3)
    record, text = scored("kappa", *tables)
    few = "CWZ: fewer than 30 patients say little about a centre"
    told = "quadratic kappa 0.5000 (95 % interval -0.2245 to 0.8685), 20 patients"
    assert (record["warnings"], text) == ([few], f"sentinode: {few}\nsentinode: {told}\n")


def test_centres_and_differences_say_so_too(tmp_path: Path) -> None:
    truth = stage_table(tmp_path / "a.csv", STAGES * 4 + ["pN0"] * 5)
    found = stage_table(tmp_path / "b.csv", STAGES[::-1] + STAGES * 3 + ["pN0"] * 5)
    record, _ = scored("kappa", truth, found, "--against", found)
    assert record["warnings"] == [
        "RST: kappa is undefined: every patient is pN0 in both tables",
        "CWZ: fewer than 30 patients say little about a centre",
        f"minus {found}: both submissions stage every patient alike",
    ]
    assert record["against"][0]["warnings"] == ["both submissions stage every patient alike"]


def test_undefined_kappa_is_null(tmp_path: Path) -> None:
    truth = stage_table(tmp_path / "reference.csv", ["pN1", "pN1"])
    record, text = scored("kappa", truth, truth, "--against", truth, "--table", "--picture", tmp_path / "k.png")
    assert (record["kappa"], record["against"][0]["p_value"]) == (None, None)
    assert "undefined" in text


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ("patient,stage\npatient_000.zip,pN0\n", MissingPatientError, "patient_001"),
        ("patient,stage\npatient_000,pN0\npatient_001,pN0\n", MissingPatientError, r"patient_000\.zip"),
        ("patient,stage\npatient_000.zip,pN3\n", UnknownLabelError, r"line 2.*unknown stage 'pN3'"),
        ("patient;stage\npatient_000.zip,pN0\n", TableError, "not with the header patient,stage"),
        ("patient;stage\npatient_000.zip;pN0;\n", TableError, "semicolons separate cells only if every line has"),
        ("slide,stage\npatient_000.zip,pN0\n", TableError, "not with the header patient,stage"),
        ("patient,stage\npatient_000.zip\n", TableError, "line 2"),
        ("", TableError, "is empty"),
    ],
)
def test_bad_submissions_are_refused(tmp_path: Path, text: str, error: type[StagingError], reason: str) -> None:
    truth = stage_table(tmp_path / "reference.csv", ["pN0", "pN2"])
    (tmp_path / "s.csv").write_text(text)
    for options in ([truth, tmp_path / "s.csv"], [truth, truth, "--against", tmp_path / "s.csv"]):
        assert str(tmp_path / "s.csv") in str(refused(error, reason, "kappa", *options))


# --- labels ---------------------------------------------------------------------------------------------------------


def test_labels(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text(
        "patient,stage\npatient_000.zip,pN0\npatient_000_node_0.tif,negative\npatient_000_node_1.tif,itc\n"
        "patient_020_node_0.tif,itc\npatient_020_node_1.tif,micro\npatient_020_node_2.tif,macro\n"
    )
    (tmp_path / "s.csv").write_text(
        "slide,label,largest_um\nPatient_000_node_0,negative,0\npatient_000_node_1,negative,0\n"
        "patient_020_node_0,micro,300\npatient_020_node_1,micro,400\npatient_020_node_2,micro,900\nother,itc,3\n"
    )
    record, text = scored("labels", tmp_path / "r.csv", tmp_path / "s.csv", "--table", "--picture", tmp_path / "l.png")
    assert record["confusion"] == [[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert (record["accuracy"], record["accuracy_without_itc"]) == (0.4, pytest.approx(2 / 3))
    assert record["recall"] == {"negative": 1.0, "itc": 0.0, "micro": 1.0, "macro": 0.0}
    assert record["detected"] == {"itc": 0.5, "micro": 1.0, "macro": 1.0}
    assert (list(record["centres"]), record["ignored"]) == (["CWZ", "RST"], ["other"])
    assert record["centres"]["CWZ"]["recall"]["macro"] is None
    assert record["centres"]["CWZ"]["recall_intervals"]["macro"] == [None, None]
    assert "accuracy 0.4000" in text
    assert is_picture(tmp_path / "l.png")


def test_missing_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("slide,label\n" + "".join(f"s{number},itc\n" for number in range(12)))
    (tmp_path / "s.csv").write_text("slide,label\ns0,itc\n")
    error = refused(CohortError, r"no label for s1, s2.* and 3 more", "labels", tmp_path / "r.csv", tmp_path / "s.csv")
    assert error.path == str(tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (5, 10, (0.2366, 0.7634)), (81, 263, (0.2553, 0.3662))],
)
def test_wilson_interval(part: int, whole: int, expected: tuple[float, float]) -> None:
    """Newcombe, Statistics in Medicine 17 (1998) 857-872, Table I, for 81/263; the others by the formula by hand."""
    share, interval = part / whole, wilson(part / whole, whole)
    assert share == part / whole
    assert interval == pytest.approx(expected, abs=1e-4)


def test_slides_of_one_patient_do_not_count_as_several(tmp_path: Path) -> None:
    """A table says whose slides are whose; names of CAMELYON17 do without one."""
    labels = ["itc", "macro", "negative", "micro", "itc", "macro"] * 4
    found = ["itc", "macro", "negative", "micro", "macro", "micro"] * 4
    alone, doubled, named = {}, {}, {}
    for number, (truth, guess) in enumerate(zip(labels, found, strict=True)):
        alone[f"s{number}"] = doubled[f"s{number}"] = doubled[f"t{number}"] = (truth, guess)
        named[f"patient_{number:03d}_node_0"] = named[f"patient_{number:03d}_node_1"] = (truth, guess)
    (tmp_path / "p.csv").write_text("slide,patient\n" + "".join(f"s{n},P{n}\nt{n},P{n}\n" for n in range(24)))
    intervals = []
    nothing: list[str | Path] = []
    table: list[str | Path] = ["--patients", tmp_path / "p.csv"]
    for rows, options in ((alone, nothing), (doubled, table), (named, nothing), (doubled, nothing)):
        for index, name in enumerate(("truth", "guess")):
            lines = "".join(f"{slide},{both[index]}\n" for slide, both in rows.items())
            (tmp_path / f"{name}.csv").write_text("slide,label\n" + lines)
        record, _ = scored("labels", tmp_path / "truth.csv", tmp_path / "guess.csv", *options)
        intervals.append(record["accuracy_interval"])
    one, by_table, by_name, as_alone = ([*map(float, interval)] for interval in intervals)
    assert by_table == by_name == pytest.approx(one, abs=0.02)
    assert as_alone[1] - as_alone[0] < 0.75 * (one[1] - one[0])


# --- auc ------------------------------------------------------------------------------------------------------------


def test_auc(tmp_path: Path) -> None:
    rows = ["test_001,Tumor,IDC,Macro", "test_002,Normal,None,None", "test_049,Tumor,IDC,Macro", "tumor_001,Tumor,x,y"]
    (tmp_path / "r.csv").write_text("\n".join(rows))
    (tmp_path / "p.csv").write_text("Test_001.tif,0.9\ntest_002.tif,0.5\ntumor_001,0.5\ntest_049,0.1\nmore,1\n")
    record, _ = scored("auc", tmp_path / "r.csv", tmp_path / "p.csv", "--picture", tmp_path / "r.png")
    assert (record["auc"], record["slides"]) == (0.75, 3)
    assert record["excluded"] == {"test_049": "it is a duplicate of another slide"}
    assert (record["ignored"], record["centres"]) == (["more"], {"RUMC": None})
    assert is_picture(tmp_path / "r.png")
    record, text = scored("auc", tmp_path / "r.csv", tmp_path / "p.csv", "--all-slides", "--table")
    assert "area 0.5000 (95 % interval" in text
    assert "2 positive and 1 negative slides" in text or "3 positive and 1 negative slides" in text
    assert (record["auc"], record["excluded"]) == (pytest.approx(0.5), {})


@pytest.mark.parametrize(
    ("truth", "predictions", "error", "reason"),
    [
        ("a,Tumor\nb,Normal\n", "a,0.5\n", CohortError, "no prediction for b"),
        ("a,Tumor\nb,Tumor\n", "a,0.5\nb,0.1\n", CohortError, "all slides are of one kind"),
        ("a,Tumor\ntest_049,Normal\n", "a,0.5\ntest_049,0.1\n", CohortError, "all slides are of one kind"),
        ("a,Tumor\na,Normal\n", "a,0.5\n", ConflictError, "lines 1 and 2"),
        ("a,Tumor\nb,Normal\n", "a,0.5\nb,nan\n", TableError, "line 2"),
    ],
)
def test_bad_tables_of_auc(
    tmp_path: Path, truth: str, predictions: str, error: type[StagingError], reason: str
) -> None:
    (tmp_path / "r.csv").write_text(truth)
    (tmp_path / "p.csv").write_text(predictions)
    refused(error, reason, "auc", tmp_path / "r.csv", tmp_path / "p.csv")


# --- froc -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """One tumour slide with two lesions, one of which is hit, and one normal slide."""
    masks, detections = tmp_path / "masks", tmp_path / "detections"
    masks.mkdir()
    detections.mkdir()
    inside = np.zeros((140, 170), dtype=np.uint8)
    inside[40:70, 40:90] = 255
    inside[100:130, 100:150] = 255
    Pillow.fromarray(inside).save(masks / "Test_001_Mask.png")
    (detections / "test_001.csv").write_text("0.9,1936,1616\n0.4,100,100\n")
    (detections / "Test_003.csv").write_text("")
    (tmp_path / "reference.csv").write_text("test_001,Tumor,IDC,Macro\ntest_003,Normal,None,None\n")
    return masks, detections


def test_froc(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    options: list[str | Path] = [
        "--normal-list",
        tmp_path / "reference.csv",
        "--table",
        "--picture",
        tmp_path / "f.png",
    ]
    record, text = scored("froc", *folders, *options)
    assert record["froc_score"] == record["corrected"]["froc_score"] == 0.5
    assert (record["rates"], record["sensitivities"]) == ([0.25, 0.5, 1, 2, 4, 8], [0.5] * 6)
    assert [record[key] for key in ("slides", "tumour_slides", "lesions", "hit", "missed", "itc")] == [2, 1, 2, 1, 1, 0]
    assert (record["false_positives"], record["tumour_values"], record["pixel_um"]) == (1, {"255": 1}, 7.776)
    assert [(row["slide"], row["status"], row["probability"]) for row in record["lesion_table"]] == [
        ("test_001", "hit", 0.9),
        ("test_001", "missed", None),
    ]
    assert "missed" in text
    assert is_picture(tmp_path / "f.png")


def test_what_is_no_table_of_detections_is_named(folders: tuple[Path, Path]) -> None:
    (folders[1] / "test_004.txt").write_text("0.9,1,1\n")
    record, text = scored("froc", *folders, "--missing-mask-is-normal")
    assert record["skipped"] == {"of unknown suffix": {"count": 1, "names": "test_004.txt"}}
    assert "of the detections skipped: 1 of unknown suffix (test_004.txt)" in text


def test_missing_masks_are_never_silently_normal(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    refused(CohortError, r"has no mask for test_003 .*--normal-list", "froc", *folders)
    record, _ = scored("froc", *folders, "--missing-mask-is-normal")
    assert record["slides"] == 2
    (tmp_path / "names.txt").write_text("Test_003.tif\n")
    assert scored("froc", *folders, "--normal-list", tmp_path / "names.txt")[0] == record


def test_known_bad_slides_are_left_out(folders: tuple[Path, Path]) -> None:
    masks, detections = folders
    for name in ("test_049", "test_114"):
        shutil.copy(masks / "Test_001_Mask.png", masks / f"{name}_mask.png")
        (detections / f"{name}.csv").write_text("")
    record, text = scored("froc", *folders, "--missing-mask-is-normal", "--table")
    assert (sorted(record["excluded"]), record["slides"]) == (["test_049", "test_114"], 2)
    assert "left out: test_114 (not all of its tumour is annotated)" in text
    record, _ = scored("froc", *folders, "--missing-mask-is-normal", "--all-slides")
    assert (record["excluded"], record["slides"], record["lesions"]) == ({}, 4, 6)


def test_every_slide_needs_detections(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (folders[1] / "Test_003.csv").unlink()
    for options in ([], ["--missing-mask-is-normal"]):
        (folders[1] / "test_001.csv").rename(folders[1] / "test_002.csv")
        refused(CohortError, r"has no detections for test_001 \(write an empty file", "froc", *folders, *options)
        (folders[1] / "test_002.csv").rename(folders[1] / "test_001.csv")
    normal: list[str | Path] = ["--normal-list", tmp_path / "reference.csv"]
    refused(CohortError, "has no detections for test_003", "froc", *folders, *normal)


def test_blank_masks_are_never_silently_normal(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    Pillow.fromarray(np.zeros((140, 170), dtype=np.uint8)).save(folders[0] / "test_003.png")
    refused(CohortError, "mask of test_003 has no tumour", "froc", *folders)
    assert scored("froc", *folders, "--missing-mask-is-normal")[0]["slides"] == 2
    assert scored("froc", *folders, "--normal-list", tmp_path / "reference.csv")[0]["tumour_slides"] == 1
    refused(CohortError, r"no tumour \(value 7\)", "froc", *folders, "--tumour-value", "7")


def test_normal_slides_with_tumour_are_refused(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "names.txt").write_text("test_001\ntest_003\n")
    refused(ConflictError, "listed as normal, but", "froc", *folders, "--normal-list", tmp_path / "names.txt")


def test_masks_of_two_values_are_refused(folders: tuple[Path, Path]) -> None:
    other = np.zeros((140, 170), dtype=np.uint8)
    other[40:90, 40:90] = 1
    Pillow.fromarray(other).save(folders[0] / "test_003.png")
    refused(ConfigurationError, "1 in some masks and 255 in others", "froc", *folders)


def test_outlines_score_as_the_mask_they_draw(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    normal: list[str | Path] = ["--normal-list", tmp_path / "reference.csv"]
    drawn, _ = scored("froc", *folders, *normal)
    (folders[0] / "Test_001_Mask.png").unlink()
    boxes = [(40, 40, 90, 70), (100, 100, 150, 130)]
    write_asap(
        folders[0] / "test_001.xml",
        [
            Annotation(
                name=f"{number}",
                group="metastases",
                role=Role.TUMOUR,
                kind="Rectangle",
                vertices=np.array([(left, top), (right, bottom)], dtype=np.float64) * 32,
            )
            for number, (left, top, right, bottom) in enumerate(boxes)
        ],
    )
    outlined, _ = scored("froc", *folders, *normal)
    assert outlined["tumour_values"] == {"outlines": 1}
    assert outlined | {"tumour_values": None} == drawn | {"tumour_values": None}


def test_bad_detections_are_named_by_file_and_line(folders: tuple[Path, Path]) -> None:
    path = folders[1] / "test_001.csv"
    path.write_text("0.9,1936,1616\n0.9,1936\n")
    error = refused(TableError, "line 2", "froc", *folders, "--missing-mask-is-normal")
    assert error.path == str(path)
    path.write_text("\n0.9,99999,10\n")
    error = refused(TableError, "lies outside the mask of test_001", "froc", *folders, "--missing-mask-is-normal")
    assert (error.path, error.where) == (str(path), "line 2")


def test_folders_that_cannot_be_scored(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    (tmp_path / "empty").mkdir()
    refused(CohortError, "contains no masks", "froc", tmp_path / "empty", folders[1])
    refused(CohortError, "contains no CSV", "froc", folders[0], tmp_path / "empty")
    refused(CohortError, "no such folder", "froc", folders[0], tmp_path / "nowhere")
    (folders[1] / "test_003.CSV").write_text("")
    refused(CohortError, "second table of test_003", "froc", *folders)


def test_the_result_does_not_depend_on_workers(folders: tuple[Path, Path]) -> None:
    masks, detections = folders
    for number in range(6):
        shutil.copy(masks / "Test_001_Mask.png", masks / f"tumor_{number:03d}_mask.png")
        (detections / f"tumor_{number:03d}.csv").write_text(f"0.{number + 1},1936,1616\n0.3,100,100\n")
    one, many = (
        score_folders(masks, detections, missing_mask_is_normal=True, workers=workers, resamples=50).to_json()
        for workers in (1, 4)
    )
    assert one == many


# --- as a newcomer meets it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kappa", "labels", "auc", "froc"])
def test_every_score_shows_an_example_and_whole_option_names(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "staging", "score", name, "--help"], capture_output=True, text=True, check=True
    )
    assert f"Example: sentinode score {name} " in " ".join(done.stdout.replace("│", " ").split())
    assert "…" not in done.stdout


def test_errors_are_one_line(folders: tuple[Path, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "staging", "score", "froc", *map(str, folders)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("sentinode: error: ")
    assert done.stderr.count("\n") == 1
