"""Submissions made from a run and checked, and the list of slides where run and reference differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from staging.cli import app
from staging.cohorts.camelyon import read_stage_table, write_stage_table
from staging.cohorts.references import read_predictions
from staging.cohorts.submission import Task, check_submission, read_names, require_complete, write_submission
from staging.errors import CohortError, ConflictError, MissingPatientError, TableError
from staging.lesions.detections import read_detections
from staging.lesions.labels import SlideLabel
from staging.runs.config import RunConfig
from staging.runs.records import write_tables_record
from staging.runs.review import Sight, find_disagreements, write_review
from staging.stages.pn import PatientStage
from wsi.errors import OutputExistsError
from wsi.geometry import Frame
from wsi.heatmap_store import write_heatmap
from wsi.raster import Heatmap
from wsi.store import json_text, read_sealed, sealed
from wsi.writing.pyramid import write_pyramid

FOUND = {
    "patient_000_node_0": (SlideLabel.MACRO, 0.99, 2500.0),
    "patient_000_node_1": (SlideLabel.NEGATIVE, 0.125, 0.0),
    "patient_000_node_2": (SlideLabel.MICRO, 0.95, 400.0),
    "patient_000_node_3": (SlideLabel.NEGATIVE, 0.4, 0.0),
    "patient_000_node_4": (SlideLabel.ITC, 0.7, 90.0),
}


def heatmap(peak: float) -> Heatmap:
    array = np.zeros((40, 50), dtype=np.float32)
    array[10:13, 20:24] = peak
    array[30, 40] = peak * 0.9
    frame = Frame(x=0, y=0, downsample=64.0, shape=(40, 50), mpp=0.25)
    return Heatmap(frame=frame, array=array, tissue=np.ones((40, 50), dtype=np.bool_))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run over one patient leaves."""
    run = tmp_path / "run"
    (run / "slides").mkdir(parents=True)
    (run / "overlays").mkdir()
    for slide, (label, probability, size) in FOUND.items():
        write_heatmap(run / "heatmaps" / f"{slide}.zarr", heatmap(probability), {"slide": slide})
        Pillow.new("RGB", (60, 50), "white").save(run / "overlays" / f"{slide}.png")
        lesions = [{"longest_diameter_um": size, "centroid": [1400.0, 740.0]}] if size else []
        record = {"slide": slide, "label": label.value, "probability": probability, "lesions": lesions}
        (run / "slides" / f"{slide}.json").write_text(json_text(sealed({"made_from": {}, "analysis": record})))
    labels = {slide: label for slide, (label, _, _) in FOUND.items()}
    write_stage_table(run / "stages.csv", {"patient_000": PatientStage.PN1}, labels)
    (run / "run.json").write_text(json_text(RunConfig(model="m", threshold=0.5, peak=0.5).to_json()))
    (run / "quarantine.csv").write_text("slide,path,stage,reason\n")
    (run / "unscored.csv").write_text("patient,reason\n")
    write_tables_record(run)
    return run


@pytest.mark.parametrize("task", Task)
def test_what_was_partly_seen_is_said(run: Path, tmp_path: Path, task: Task) -> None:
    assert write_submission(task, run, tmp_path / "whole").doubts == ()
    record = run / "slides" / "patient_000_node_3.json"
    found = read_sealed(record)
    found["analysis"]["is_partial"] = True
    record.write_text(json_text(sealed(found)))
    done = CliRunner().invoke(app, ["submission", "write", task.value, str(run), "-o", str(tmp_path / "partly")])
    assert "seen only in part, which no submission can say: patient_000_node_3" in done.stderr
    assert len(json.loads(done.stdout)["doubts"]) == 1


@pytest.mark.parametrize("command", ["submission write stages {} -o new.csv", "review {} {}/stages.csv -o new"])
def test_a_run_that_was_changed_is_not_used(
    run: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = run / "slides" / "patient_000_node_3.json"
    record.write_text(record.read_text().replace("negative", "macro").replace("macro", "itc"))
    done = CliRunner().invoke(app, command.format(run, run).split())
    assert isinstance(done.exception, CohortError)
    assert "patient_000_node_3.json: was changed" in str(done.exception)


def test_a_run_whose_tables_were_changed_is_not_submitted(run: Path, tmp_path: Path) -> None:
    (run / "stages.csv").write_text((run / "stages.csv").read_text().replace("pN1", "pN0"))
    arguments = ["submission", "write", "stages", str(run), "-o", str(tmp_path / "new.csv")]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, CohortError)
    assert "stages.csv" in str(done.exception)
    assert not (tmp_path / "new.csv").exists()
    write_tables_record(run)
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_detections_of_other_slides_are_never_submitted_with_these(run: Path, tmp_path: Path) -> None:
    write_submission(Task.LESIONS, run, tmp_path / "detections")
    (tmp_path / "detections" / "test_099.csv").write_text("0.9,1,1\n")
    with pytest.raises(OutputExistsError, match=r"slides that are not in this run: test_099"):
        write_submission(Task.LESIONS, run, tmp_path / "detections")


def test_the_three_submissions_are_what_the_scores_read(run: Path, tmp_path: Path) -> None:
    stages = write_submission(Task.STAGES, run, tmp_path / "stages.csv")
    assert stages.entries == 1
    assert read_stage_table(tmp_path / "stages.csv").stages == {"patient_000": PatientStage.PN1}
    slides = write_submission(Task.SLIDES, run, tmp_path / "slides.csv")
    assert slides.entries == 5
    wanted = {slide: probability for slide, (_, probability, _) in FOUND.items()}
    assert read_predictions(tmp_path / "slides.csv") == pytest.approx(wanted)
    lesions = write_submission(Task.LESIONS, run, tmp_path / "detections")
    assert lesions.entries == 5
    first = read_detections(tmp_path / "detections" / "patient_000_node_0.csv")
    assert first.probability == pytest.approx([0.99, 0.891])
    assert (first.x[0], first.y[0]) == (20.5 * 64, 10.5 * 64)
    assert (tmp_path / "detections" / "patient_000_node_1.csv").read_bytes() == b""
    assert lesions.detections == 2 + 2 + 2
    for task, path in ((Task.STAGES, "stages.csv"), (Task.SLIDES, "slides.csv"), (Task.LESIONS, "detections")):
        found = check_submission(task, tmp_path / path)
        assert not found.missing
        assert not found.doubts or task is Task.LESIONS


def test_an_incomplete_run_is_submitted_only_on_demand(run: Path, tmp_path: Path) -> None:
    (run / "unscored.csv").write_text("patient,reason\npatient_001,node 3 failed\n")
    with pytest.raises(CohortError, match=r"is incomplete: patient_001 .*--allow-incomplete"):
        write_submission(Task.STAGES, run, tmp_path / "stages.csv")
    assert not (tmp_path / "stages.csv").exists()
    done = write_submission(Task.STAGES, run, tmp_path / "stages.csv", allow_incomplete=True)
    assert done.missing == ("patient_001",)
    (run / "quarantine.csv").write_text("slide,path,stage,reason\ntest_002,x,open,bad\n")
    with pytest.raises(CohortError, match="test_002"):
        write_submission(Task.SLIDES, run, tmp_path / "slides.csv")


@pytest.mark.parametrize("name", ["", "slides", "unscored.csv"])
def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    where = run
    if name == "slides":
        for record in (run / "slides").iterdir():
            record.unlink()
    elif name:
        (run / name).unlink()
    else:
        where = tmp_path / "nowhere"
    with pytest.raises(CohortError):
        write_submission(Task.STAGES, where, tmp_path / "stages.csv")


def test_stages_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "stages.csv"
    path.write_text(
        "patient,stage\npatient_100.zip,pN0\n"
        + "".join(f"patient_100_node_{node}.tif,{'micro' if node == 2 else 'negative'}\n" for node in range(5))
        + "patient_101.zip,pN2\n"
    )
    found = check_submission(Task.STAGES, path, expected=["patient_100.zip", "patient_102.zip"])
    assert found.missing == ("patient_102",)
    assert found.beyond == ("patient_101",)
    assert found.doubts == ("patient_100 is pN0 but its slides give pN1mi",)
    with pytest.raises(MissingPatientError, match="lacks patient_102"):
        require_complete(found)
    path.write_text("patient,stage\npatient_100,pN0\n")
    with pytest.raises(TableError, match=r"without \.zip: patient_100"):
        check_submission(Task.STAGES, path)


def test_lesions_are_checked(tmp_path: Path) -> None:
    folder = tmp_path / "detections"
    folder.mkdir()
    with pytest.raises(TableError, match="contains no CSV"):
        check_submission(Task.LESIONS, folder)
    (folder / "Test_001.csv").write_text("0.9,100,200\n")
    (folder / "test_002.csv").write_text("0.8,300,400\n")
    (folder / "test_003.csv").write_text("")
    found = check_submission(Task.LESIONS, folder, expected=["test_001.tif", "test_003", "test_004"])
    assert (found.entries, found.detections) == (3, 2)
    assert found.missing == ("test_004",)
    assert found.beyond == ("test_002",)
    assert "level-0 px" in found.doubts[0]
    (folder / "test_002.csv").write_text("0.8,300\n")
    with pytest.raises(TableError, match=r"test_002.csv, line 1"):
        check_submission(Task.LESIONS, folder)
    with pytest.raises(TableError, match="is not a folder"):
        check_submission(Task.LESIONS, tmp_path / "nowhere")


def test_two_tables_of_one_slide_are_not_joined(tmp_path: Path) -> None:
    for name in ("test_001.csv", "TEST_001.csv"):
        (tmp_path / name).write_text("0.5,1,2\n")
    with pytest.raises(ConflictError, match="second table of test_001"):
        check_submission(Task.LESIONS, tmp_path)


def test_a_run_that_lost_a_heatmap_leaves_no_half_submission(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "heatmaps" / "patient_000_node_3.zarr")
    with pytest.raises(CohortError, match="no heatmap of patient_000_node_3"):
        write_submission(Task.LESIONS, run, tmp_path / "lesions", allow_incomplete=True)
    assert not (tmp_path / "lesions").exists()


def test_slides_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "slides.csv"
    path.write_text("test_001,0.5\ntest_002,0.5\n")
    assert check_submission(Task.SLIDES, path).doubts == ("all slides have the same probability",)
    path.write_text("test_001,0.5\ntest_002,3\n")
    assert check_submission(Task.SLIDES, path).doubts == ("probabilities lie outside 0 to 1",)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("patient,stage\npatient_000.zip,pN0\npatient_000_node_0.tif,negative\n", ("patient_000",)),
        ("test_001,Tumor,IDC,Macro\r\ntest_002,Normal,None,None\r\n", ("test_001", "test_002")),
        ("\ufefftest_001.tif\n\ntest_001\ntest_003\n", ("test_001", "test_003")),
    ],
)
def test_names_come_from_any_table(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    (tmp_path / "names.csv").write_text(text, encoding="utf-8")
    assert read_names(tmp_path / "names.csv") == names


def test_names_are_of_what_is_submitted(tmp_path: Path) -> None:
    table = tmp_path / "names.csv"
    table.write_text("patient,stage\npatient_000.zip,pN0\npatient_000_node_0.tif,negative\n")
    assert read_names(table, Task.SLIDES) == read_names(table, Task.LESIONS) == ("patient_000_node_0",)
    table.write_text("patient_000_node_0.tif\npatient_000_node_1.tif\nother.tif\n")
    assert read_names(table, Task.STAGES) == ("patient_000", "other")
    for name in ("patient_003_node_0.tif", "patient_003_node_1.tif"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).touch()
    assert read_names(tmp_path / "images", Task.STAGES) == ("patient_003",)


def test_names_come_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "test_001.tif").touch()
    assert read_names(tmp_path) == ("test_001",)
    with pytest.raises(TableError, match="names neither"):
        read_names(Path(tmp_path / "test_001.tif"))


def test_published_names_are_complete(real_data: Callable[[str], Path]) -> None:
    table = real_data("tables/camelyon17_stage_labels.csv")
    names = read_names(table)
    assert len(names) == 100
    found = check_submission(Task.STAGES, table, expected=names)
    assert not found.missing
    assert not found.beyond
    assert not found.doubts


# --- review ---------------------------------------------------------------------------------------------------------

REFERENCE = {
    "patient_000_node_0": SlideLabel.MACRO,
    "patient_000_node_1": SlideLabel.MICRO,
    "patient_000_node_2.tif": SlideLabel.NEGATIVE,
    "patient_000_node_3": SlideLabel.ITC,
    "patient_000_node_4": SlideLabel.MICRO,
    "patient_001_node_0": SlideLabel.MACRO,
}


def test_disagreements_begin_with_the_surest(run: Path) -> None:
    found, compared = find_disagreements(run, REFERENCE)
    assert compared == 5
    assert [(one.slide[-1], one.kind) for one in found] == [
        ("2", "false alarm"),
        ("1", "missed"),
        ("3", "missed"),
        ("4", "size"),
    ]
    assert [one.sureness for one in found] == pytest.approx([0.95, 0.875, 0.6, 1 - 90 / 200])
    assert found[1].sights == (Sight(x=20.5 * 64, y=10.5 * 64, lesion_um=None),)
    assert found[0].sights == (Sight(x=1400.0, y=740.0, lesion_um=400.0),)
    assert {one.centre for one in found} == {"CWZ"}


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (400.0, "a lesion, 0.4 mm at its longest<"),
        (2500.0, "a lesion, 2.5 mm at its longest, of which 0.6 mm are shown"),
    ],
)
def test_a_review_shows_close_ups_of_one_size_and_where_they_are(
    run: Path, tmp_path: Path, size: float, said: str
) -> None:
    record = run / "slides" / "patient_000_node_2.json"
    found_then = read_sealed(record)
    found_then["analysis"]["lesions"][0]["longest_diameter_um"] = size
    record.write_text(json_text(sealed(found_then)))
    tile = np.full((512, 512, 3), (200, 150, 190), dtype=np.uint8)
    slides = {name: tmp_path / f"{name}.tif" for name in ("patient_000_node_1", "patient_000_node_2")}
    for slide in slides.values():
        write_pyramid(slide, width=3200, height=2560, mpp=0.25, tiles=[tile] * 35)
    found, compared = find_disagreements(run, REFERENCE)
    write_review(tmp_path / "review", found, compared=compared, run=run, slides=slides)
    page = (tmp_path / "review" / "review.html").read_text()
    assert page.index("patient_000_node_2") < page.index("patient_000_node_1")
    for source in [part.partition('"')[0] for part in page.split('src="')[1:]]:
        assert (tmp_path / "review" / source).is_file()
    assert page.count(said) == 1
    assert page.count("the highest probability; no lesion was found") == 1
    pictures = tmp_path / "review" / "pictures"
    for name in ("node_2-1", "node_2-1-edges", "node_1-1", "node_1-1-edges"):
        with Pillow.open(pictures / f"patient_000_{name}.png") as picture:
            assert picture.size == (600, 600)
    overview, overlay = (folder / "patient_000_node_2.png" for folder in (pictures, run / "overlays"))
    assert overview.read_bytes() != overlay.read_bytes()  # drawn anew, with boxes
    table = (tmp_path / "review" / "review.csv").read_text().splitlines()
    assert table[1].startswith("patient_000_node_2,negative,micro,false alarm,0.9500,")
    write_review(tmp_path / "without", found, compared=compared, run=run)
    assert (tmp_path / "without" / "pictures" / overview.name).read_bytes() == overlay.read_bytes()


def test_a_review_needs_labelled_slides(run: Path) -> None:
    with pytest.raises(CohortError, match="no finished slide that the reference labels"):
        find_disagreements(run, {"other": SlideLabel.MACRO})
    (run / "run.json").unlink()
    with pytest.raises(CohortError, match=r"run\.json"):
        find_disagreements(run, REFERENCE)


def test_the_commands(run: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["submission", "write", "lesions", str(run), "-o", str(tmp_path / "d")])
    assert json.loads(done.stdout)["detections"] == 6
    done = runner.invoke(
        app, ["submission", "check", "lesions", str(tmp_path / "d"), "--expect", str(run / "overlays")]
    )
    assert json.loads(done.stdout)["missing"] == []
    labels = tmp_path / "labels.csv"
    labels.write_text("slide,label\n" + "".join(f"{slide},{label.value}\n" for slide, label in REFERENCE.items()))
    done = runner.invoke(app, ["review", str(run), str(labels), "-o", str(tmp_path / "r"), "--most", "2"])
    assert json.loads(done.stdout)["kinds"] == {"missed": 2, "false alarm": 1, "size": 1}
    assert len((tmp_path / "r" / "review.csv").read_text().splitlines()) == 3


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_earlier_submissions_and_reviews_are_replaced_only_if_asked(run: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("slide,label\n" + "".join(f"{slide},{label.value}\n" for slide, label in REFERENCE.items()))
    for command, made in (
        (("submission", "write", "lesions", str(run), "-o", str(tmp_path / "d")), "d"),
        (("submission", "write", "slides", str(run), "-o", str(tmp_path / "p.csv")), "p.csv"),
        (("submission", "write", "stages", str(run), "-o", str(tmp_path / "s.csv"), "--allow-incomplete"), "s.csv"),
        (("review", str(run), str(labels), "-o", str(tmp_path / "r")), "r"),
    ):
        assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
        before = files_in(tmp_path)
        assert isinstance(CliRunner().invoke(app, command).exception, OutputExistsError), made
        assert files_in(tmp_path) == before
        assert CliRunner().invoke(app, [*command, "--overwrite"], catch_exceptions=False).exit_code == 0
        assert files_in(tmp_path) == before


def test_a_folder_of_other_tables_takes_no_detections(run: Path, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.csv").write_text("slide,label\na,itc\n")
    command = ["submission", "write", "lesions", str(run), "-o", str(tmp_path / "d"), "--overwrite"]
    assert isinstance(CliRunner().invoke(app, command).exception, OutputExistsError)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["mine.csv"]


def test_a_patient_with_two_stages_is_doubtful(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("patient,stage\npatient_000.zip,pN0\npatient_001.zip,pN0\npatient_001.zip,pN2\n")
    assert check_submission(Task.STAGES, path).doubts == ("patient_001 has rows in lines 3, 4: the last counts (pN2)",)


def test_patients_of_any_name_are_checked_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("patient,stage\nP1.zip,pN0\nS21 7.zip,pN2\n")
    assert check_submission(Task.STAGES, path, expected=["p1", "s21 7"]).missing == ()
    path.write_text('patient,stage\n"patient_\n001.zip",pN2\n')
    with pytest.raises(TableError, match="a space or a line break"):
        check_submission(Task.STAGES, path, expected=["patient_001"])
