"""What was not looked at is never called negative, whichever command reads the heatmaps."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from staging.cli import app
from staging.errors import CohortError, TableError
from staging.learned_labels.labelling import label_heatmaps
from staging.lesions.labels import SizeRule
from staging.lesions.seen import Seen, SeenRule
from staging.lesions.size_labels import label_by_size
from staging.lesions.tables import LESION_COLUMNS, read_lesion_table, read_seen
from wsi.coverage import Coverage
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap

WHOLE = Coverage(tissue_mm2=40.0, looked_mm2=39.9)
PARTLY = Coverage(tissue_mm2=40.0, looked_mm2=12.5, missing_tiles=7, bad_tiles=1)
NUMBERS = "only 12.50 of 40.00 mm2 of tissue were looked at (31.2%); 7 missing tiles and 1 bad tile under tissue"


def stored(path: Path, *, lesion_px: int = 0, coverage: Coverage | None = WHOLE) -> Path:
    """A heatmap of 16 um cells with a square lesion."""
    values = np.zeros((150, 200), dtype=np.float32)
    values[3 : 3 + lesion_px, 3 : 3 + lesion_px] = 0.95
    frame = Frame(x=0.0, y=0.0, downsample=32.0, shape=values.shape, mpp=0.5)
    heatmap = Heatmap(frame=frame, array=values, tissue=np.ones(values.shape, dtype=np.bool_))
    write_heatmap(path, heatmap, {}, coverage=coverage)
    return path


def patient(folder: Path, *, partly: Iterable[int] = (1,)) -> Path:
    """Five nodes: one with a macro-metastasis, the others without lesions, some of these seen only in part."""
    for node in range(5):
        stored(
            folder / f"patient_000_node_{node}.zarr",
            lesion_px=160 if node == 4 else 0,
            coverage=PARTLY if node in partly else WHOLE,
        )
    return folder


def sentinode(*arguments: str | Path) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    with table.open() as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("coverage", "seen"),
    [
        (None, "unknown"),
        (Coverage(tissue_mm2=1000.0, looked_mm2=995.0), "whole"),
        (Coverage(tissue_mm2=1000.0, looked_mm2=994.9), "partial"),
        (Coverage(tissue_mm2=0.0, looked_mm2=0.0), "partial"),
    ],
)
def test_half_a_percent_may_go_unseen(coverage: Coverage | None, seen: str) -> None:
    found = SeenRule().judge(coverage)
    assert found.seen == seen
    assert Seen.from_json(found.to_json()) == found
    assert (SeenRule().fault(coverage) is None) is (seen != "partial")
    assert SeenRule(allow_partial=True).fault(coverage) is None
    assert SeenRule(tolerance=1.0).fault(coverage) is None


def test_a_partly_seen_heatmap_has_no_lesions_no_label_and_no_stage(tmp_path: Path) -> None:
    heatmaps = patient(tmp_path / "heatmaps")
    done = sentinode("lesions", heatmaps, "-o", tmp_path / "lesions")
    assert (done.exit_code, NUMBERS in done.stderr) == (3, True), done.output
    record = json.loads(done.stdout)
    assert list(record["quarantined"]) == ["patient_000_node_1"]
    assert "patient_000_node_1" not in record["lesions"]
    done = sentinode("label", tmp_path / "lesions" / "lesions.csv", "-o", tmp_path / "labels.csv")
    assert (done.exit_code, NUMBERS in done.stderr) == (3, True), done.output
    labels = rows_of(tmp_path / "labels.csv")
    assert {name: row["label"] for name, row in labels.items()} == {
        "patient_000_node_0": "negative",
        "patient_000_node_2": "negative",
        "patient_000_node_3": "negative",
        "patient_000_node_4": "macro",
    }
    assert {row["seen"] for row in labels.values()} == {"whole"}
    assert labels["patient_000_node_0"]["looked_mm2"] == "39.900"
    done = sentinode("stage", tmp_path / "labels.csv", "-o", tmp_path / "stages.csv")
    assert done.exit_code == 3
    assert list(json.loads(done.stdout)["unscored"]) == ["patient_000"]


def test_lesions_that_were_killed_give_no_labels(tmp_path: Path) -> None:
    """The table may be of the call before: its slides without lesions are not those that were measured now."""
    heatmaps = patient(tmp_path / "heatmaps", partly=())
    sentinode("lesions", heatmaps, "-o", tmp_path / "lesions")
    record = tmp_path / "lesions" / "lesions.json"
    found = json.loads(record.read_text())
    del found["slides"]
    record.write_text(json.dumps(found))
    with pytest.raises(TableError, match="lesions did not finish"):
        label_by_size(tmp_path / "lesions" / "lesions.csv", tmp_path / "labels.csv", rule=SizeRule())
    assert not (tmp_path / "labels.csv").exists()


def test_what_is_allowed_is_marked_down_to_the_stage(tmp_path: Path) -> None:
    heatmaps = patient(tmp_path / "heatmaps")
    done = sentinode("lesions", heatmaps, "-o", tmp_path / "lesions", "--allow-partial")
    assert (done.exit_code, json.loads(done.stdout)["partial"]) == (0, ["patient_000_node_1"])
    assert "seen only in part: patient_000_node_1" in done.stderr
    done = sentinode("label", tmp_path / "lesions" / "lesions.csv", "-o", tmp_path / "labels.csv")
    assert (done.exit_code, json.loads(done.stdout)["partial"]) == (0, ["patient_000_node_1"])
    assert rows_of(tmp_path / "labels.csv")["patient_000_node_1"]["seen"] == "partial"
    done = sentinode("stage", tmp_path / "labels.csv", "-o", tmp_path / "stages.csv")
    assert (done.exit_code, json.loads(done.stdout)["at_least"]) == (0, ["patient_000"])
    assert "at least pN1" in done.stderr


def test_a_tolerance_of_ones_own(tmp_path: Path) -> None:
    heatmaps = patient(tmp_path / "heatmaps")
    done = sentinode("lesions", heatmaps, "-o", tmp_path / "lesions", "--coverage-tolerance", "0.7")
    assert (done.exit_code, json.loads(done.stdout)["quarantined"]) == (0, {})


def test_a_table_that_stands_alone_is_completed_by_heatmaps_that_saw_the_slide(tmp_path: Path) -> None:
    heatmaps = patient(tmp_path / "heatmaps", partly=(1, 4))
    sentinode("lesions", heatmaps, "-o", tmp_path / "lesions", "--allow-partial")
    shutil.copy(tmp_path / "lesions" / "lesions.csv", tmp_path / "alone.csv")
    arguments = ("label", tmp_path / "alone.csv", "--heatmaps", heatmaps, "-o", tmp_path / "labels.csv")
    done = sentinode(*arguments)
    assert (done.exit_code, NUMBERS in done.stderr) == (3, True)
    assert sorted(json.loads(done.stdout)["quarantined"]) == ["patient_000_node_1", "patient_000_node_4"]
    assert set(rows_of(tmp_path / "labels.csv")) == {f"patient_000_node_{node}" for node in (0, 2, 3)}
    assert sentinode(*arguments, "--allow-partial", "--overwrite").exit_code == 0
    seen = {name: row["seen"] for name, row in rows_of(tmp_path / "labels.csv").items()}
    assert [seen[f"patient_000_node_{node}"] for node in range(5)] == ["whole", "partial", "whole", "whole", "partial"]


def test_a_heatmap_that_does_not_say_is_used_and_named(tmp_path: Path) -> None:
    path = stored(tmp_path / "old.zarr", lesion_px=20, coverage=None)
    done = sentinode("lesions", path, "-o", tmp_path / "lesions")
    assert (done.exit_code, json.loads(done.stdout)["unknown"]) == (0, ["old"])
    assert "do not say how much of the tissue was seen: old" in done.stderr
    sentinode("label", tmp_path / "lesions" / "lesions.csv", "-o", tmp_path / "labels.csv")
    row = rows_of(tmp_path / "labels.csv")["old"]
    assert (row["label"], row["seen"], row["tissue_mm2"]) == ("micro", "unknown", "")


def test_learned_labels_neither_learn_from_nor_label_what_was_not_seen(tmp_path: Path) -> None:
    heatmaps, rows = tmp_path / "heatmaps", ["slide,label"]
    for number in range(12):
        label, size = (("negative", 0), ("micro", 40), ("macro", 140))[number % 3]
        name = f"patient_{number:03d}_node_0"
        stored(heatmaps / f"{name}.zarr", lesion_px=size, coverage=PARTLY if number == 5 else WHOLE)
        rows.append(f"{name},{label}")
    (tmp_path / "truth.csv").write_text("\n".join(rows))
    train = ("label", "--train", heatmaps, tmp_path / "truth.csv", "--trees", "5", "--folds", "2")
    done = sentinode(*train, "-o", tmp_path / "model.json")
    record = json.loads(done.stdout)
    assert (done.exit_code, record["slides"]) == (3, 11), done.output
    assert list(record["quarantined"]) == ["patient_005_node_0"]
    apply = ("label", "--apply", tmp_path / "model.json", heatmaps, "-o", tmp_path / "learned.csv")
    done = sentinode(*apply)
    assert (done.exit_code, NUMBERS in done.stderr) == (3, True)
    assert "patient_005_node_0" not in rows_of(tmp_path / "learned.csv")
    (tmp_path / "learned.csv").unlink()
    assert sentinode(*apply, "--allow-partial").exit_code == 0
    assert rows_of(tmp_path / "learned.csv")["patient_005_node_0"]["seen"] == "partial"
    only = tmp_path / "only"
    stored(only / "a.zarr", coverage=PARTLY)
    with pytest.raises(CohortError, match=r"no heatmap to use: only 12\.50"):
        label_heatmaps(tmp_path / "model.json", only, tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("slide,label,seen,seen\na,macro,partial,whole\n", "two columns 'seen'"),
        ("slide,label,seen\na,macro\n", "does not say how much of a was seen"),
        ("slide,label,tissue_mm2,looked_mm2,seen\na,macro,1,-1,whole\n", "an area is -1.0 mm2"),
    ],
)
def test_how_much_was_seen_is_not_guessed(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(TableError, match=reason):
        read_seen(tmp_path / "labels.csv")


@pytest.mark.parametrize("area", ["NaN", "-1", "Infinity"])
def test_areas_that_cannot_be_are_refused(tmp_path: Path, area: str) -> None:
    (tmp_path / "lesions.csv").write_text(f"{','.join(LESION_COLUMNS)}\n")
    one = f'{{"tissue_mm2": {area}, "looked_mm2": 1, "seen": "whole"}}'
    (tmp_path / "lesions.json").write_text(f'{{"outlines": [], "slides": {{"a": {one}}}}}')
    done = CliRunner().invoke(app, ["label", str(tmp_path / "lesions.csv"), "-o", str(tmp_path / "labels.csv")])
    assert isinstance(done.exception, TableError)


@pytest.mark.parametrize("quarantined", ["5", "[1]"])
def test_what_was_set_aside_must_be_a_list_of_slides(tmp_path: Path, quarantined: str) -> None:
    (tmp_path / "lesions.csv").write_text(f"{','.join(LESION_COLUMNS)}\n")
    (tmp_path / "lesions.json").write_text(f'{{"outlines": [], "slides": {{}}, "quarantined": {quarantined}}}')
    done = CliRunner().invoke(app, ["label", str(tmp_path / "lesions.csv"), "-o", str(tmp_path / "labels.csv")])
    assert isinstance(done.exception, TableError)


def test_a_table_without_any_slide_gives_no_labels(tmp_path: Path) -> None:
    (tmp_path / "lesions.csv").write_text(f"{','.join(LESION_COLUMNS)}\n")
    done = CliRunner().invoke(app, ["label", str(tmp_path / "lesions.csv"), "-o", str(tmp_path / "labels.csv")])
    assert isinstance(done.exception, CohortError)
    assert not (tmp_path / "labels.csv").exists()


def test_a_row_that_says_partial_counts_and_nonsense_is_named(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("slide,label,seen\na,itc,whole\nb,itc,\na,itc,Partial\nc,itc,whole\nc,itc,whole\n")
    assert {slide: one.seen for slide, one in read_seen(table).items()} == {
        "a": "partial",
        "b": "unknown",
        "c": "whole",
    }
    table.write_text("slide,label,seen\na,itc,whole\nb,itc,perhaps\n")
    with pytest.raises(TableError, match=r"line 3: does not say how much of b was seen"):
        read_seen(table)
    table.write_text("slide,label\na,itc\n")
    assert read_seen(table) == {}


@pytest.mark.parametrize(
    "row",
    ["a,1,itc,nan,1,1,1,1", "a,1,itc,1,1,1,1", "a,1,itc,1,-1,1,1,1", "a,1,itc,1,1,1_0,1,1", "a,1,itc,1,1,inf,1,1"],
)
def test_rows_that_are_no_lesions(row: str, tmp_path: Path) -> None:
    table = tmp_path / "lesions.csv"
    header = "slide,lesion,class,longest_diameter_um,area_um2,x,y,probability"
    table.write_text(f"{header}\na,1,itc,10.5,20,1,1,0.9\n{row}\n")
    with pytest.raises(TableError, match=r"line 3: (is not a lesion|has an impossible size)"):
        read_lesion_table(table)
