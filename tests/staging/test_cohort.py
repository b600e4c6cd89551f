"""A run: what it leaves, and how calls, processes and kills never change a byte of it."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile
from small_run import MPP, Silence, configuration, contents, run

from staging.cohorts.camelyon import find_slides, read_stage_table
from staging.errors import ConfigurationError, MissingPatientError, TooManyFailuresError
from staging.lesions.labels import SizeRule
from staging.phantom import generate_cohort
from wsi.cnn.checkpoint import save_checkpoint
from wsi.errors import CheckpointError, OutputInUseError
from wsi.slide import Slide

pytestmark = pytest.mark.slow  # its fixtures take seconds


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two synthetic patients at 8 um/px, on an ordinary and on the Philips-style centre."""
    folder = tmp_path_factory.mktemp("cohort")
    generate_cohort(folder, patients=2, centres=(0, 3), seed=11, mpp=MPP, workers=1)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Any]) -> Path:
    """A network with seeded random weights: its heatmaps mean nothing, but they are reproducible."""
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_checkpoint(path, make_checkpoint(mpp=MPP, seed=3))
    return path


@pytest.fixture(scope="module")
def finished(cohort: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    reference = read_stage_table(cohort / "stage_labels.csv")
    run(find_slides([cohort / "images"]), output, model, reference=reference)
    return output


def test_a_run_leaves_every_artefact(finished: Path, cohort: Path) -> None:
    names = sorted(path.stem for path in (cohort / "images").iterdir())
    assert len(names) == 10
    for folder, suffix in (("heatmaps", ".zarr"), ("overlays", ".png"), ("lesions", ".xml"), ("lesions", ".geojson")):
        assert sorted(path.stem for path in (finished / folder).glob(f"*{suffix}")) == names
    assert (finished / "labels.csv").read_text().count("\n") == 11
    score = json.loads((finished / "score.json").read_text())
    assert score["patients"] == 2
    assert score["complete"]
    report = (finished / "report.html").read_text()
    assert all(name in report for name in names)
    stages = read_stage_table(finished / "stages.csv")
    assert set(stages.stages) == {"patient_000", "patient_060"}
    assert sorted(stages.labels) == names


def test_a_second_call_redoes_nothing_and_changes_no_byte(finished: Path, cohort: Path, model: Path) -> None:
    before = contents(finished)
    touched = {path: path.stat().st_mtime_ns for path in finished.rglob("*.zarr/*") if path.is_file()}
    news = Silence()
    reference = read_stage_table(cohort / "stage_labels.csv")
    run(find_slides([cohort / "images"]), finished, model, reference=reference, news=news)
    assert contents(finished) == before
    assert {path: path.stat().st_mtime_ns for path in touched} == touched
    assert news.counted == set()
    assert len(news.ended) == 10


def test_a_second_call_starts_no_process_and_opens_no_slide(
    finished: Path, cohort: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr("staging.runs.cluster._local_client", refuse)
    monkeypatch.setattr(Slide, "open", refuse)
    reference = read_stage_table(cohort / "stage_labels.csv")
    again = run(find_slides([cohort / "images"]), finished, model, reference=reference, workers=2)
    assert (len(again.analyses), again.failures) == (10, ())


def test_outlines_are_named_by_the_rule_of_the_run(cohort: Path, model: Path, tmp_path: Path) -> None:
    rule = SizeRule(smallest_um=60.0, itc_max_um=100.0, micro_max_um=250.0)
    slides = find_slides([cohort / "images"])[:2]
    run(slides, tmp_path, model, config=configuration(model, threshold=0.3, peak=0.3, rule=rule))
    rows = list(csv.DictReader((tmp_path / "lesions.csv").read_text().splitlines()))
    classes = {(row["slide"], f"lesion {row['lesion']} ({row['class']})") for row in rows}
    assert len({row["class"] for row in rows}) == 3
    named = {
        (slide.name, one["properties"]["name"])
        for slide in slides
        for one in json.loads((tmp_path / "lesions" / f"{slide.name}.geojson").read_text())["features"]
    }
    assert named == classes


def test_workers_change_no_byte(finished: Path, cohort: Path, model: Path, tmp_path: Path) -> None:
    news = Silence()
    reference = read_stage_table(cohort / "stage_labels.csv")
    run(find_slides([cohort / "images"]), tmp_path / "two", model, reference=reference, workers=2, news=news)
    assert contents(tmp_path / "two") == contents(finished)


def test_a_killed_run_goes_on_to_the_same_bytes(finished: Path, cohort: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "staging", "run", str(cohort / "images"), "-o", str(output), "--model", str(model)]
    command += ["--reference", str(cohort / "stage_labels.csv"), "--workers", "1"]
    with subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 60
        while not list((output / "slides").glob("*.json")):
            assert time.monotonic() < deadline, "no slide was finished"
            assert child.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    done = {path.stem for path in (output / "slides").glob("*.json")}
    assert len(done) < 10
    news = Silence()
    reference = read_stage_table(cohort / "stage_labels.csv")
    run(find_slides([cohort / "images"]), output, model, reference=reference, news=news)
    assert not done & news.counted
    assert contents(output) == contents(finished)


def test_bad_slides_are_quarantined_and_change_no_other(
    finished: Path, cohort: Path, model: Path, tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    slides = tmp_path / "slides"
    shutil.copytree(cohort / "images", slides)
    whole = (slides / "patient_060_node_2.tif").read_bytes()
    (slides / "patient_060_node_2.tif").write_bytes(whole[: len(whole) // 2])
    shutil.copy(real_data("slides/unopenable.tiff"), slides)
    shutil.copy(real_data("slides/unreadable.svs"), slides)
    result = run(
        find_slides([slides]), tmp_path / "out", model, reference=read_stage_table(cohort / "stage_labels.csv")
    )
    assert {failure.slide for failure in result.failures} == {"patient_060_node_2", "unopenable", "unreadable"}
    assert all(failure.step and failure.reason for failure in result.failures)
    assert set(result.staging.stages) == {"patient_000"}
    assert "node_2" in next(one.reason for one in result.staging.unscored if one.patient == "patient_060")
    good, all_good = contents(tmp_path / "out" / "heatmaps"), contents(finished / "heatmaps")
    assert good == {name: data for name, data in all_good.items() if "patient_060_node_2" not in name}
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    assert score["unscored"] == ["patient_060"]
    assert not score["complete"]
    quarantine = (tmp_path / "out" / "quarantine.csv").read_text()
    assert "unopenable" in quarantine
    assert "patient_060_node_2" in (tmp_path / "out" / "report.html").read_text()


def test_a_bad_tile_ends_its_slide_or_is_white_and_reported(cohort: Path, model: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    slide = images / "patient_000_node_0.tif"
    raw = bytearray((cohort / "images" / slide.name).read_bytes())
    with tifffile.TiffFile(cohort / "images" / slide.name) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        index = next(index for index, count in enumerate(page.databytecounts) if count)
        across = -(-page.imagewidth // page.tilewidth)
        raw[page.dataoffsets[index] : page.dataoffsets[index] + page.databytecounts[index]] = bytes(
            page.databytecounts[index]
        )
    slide.write_bytes(raw)
    strict = run(find_slides([images]), tmp_path / "strict", model)
    assert len(strict.failures) == 1
    row, column = divmod(index, across)
    assert f"level 0, tile row {row}, tile column {column}" in strict.failures[0].reason
    white = configuration(model, on_bad_tile="white", nodes=1)
    (unseen,) = run(find_slides([images]), tmp_path / "unseen", model, config=white).failures
    assert unseen.step == "coverage"
    assert "1 bad tile under tissue" in unseen.reason
    in_part = configuration(model, on_bad_tile="white", nodes=1, allow_partial=True)
    lenient = run(find_slides([images]), tmp_path / "lenient", model, config=in_part)
    assert not lenient.failures
    assert lenient.staging.at_least == {"patient_000"}
    table = (tmp_path / "lenient" / "bad_tiles.csv").read_text()
    assert f"patient_000_node_0,0,{row},{column}," in table
    assert "could not be decoded" in (tmp_path / "lenient" / "report.html").read_text()
    again = run(find_slides([images]), tmp_path / "lenient", model, config=in_part)
    assert again.analyses == lenient.analyses
    assert (tmp_path / "lenient" / "bad_tiles.csv").read_text() == table
    with pytest.raises(ConfigurationError, match="on_bad_tile: raise -> white"):
        run(find_slides([images]), tmp_path / "strict", model, config=configuration(model, on_bad_tile="white"))


def test_a_mended_slide_is_done_by_the_next_call(finished: Path, cohort: Path, model: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    shutil.copytree(cohort / "images", slides)
    bad = slides / "patient_000_node_1.tif"
    whole = bad.read_bytes()
    bad.write_bytes(b"\0" * 4096)
    output = tmp_path / "out"
    reference = read_stage_table(cohort / "stage_labels.csv")
    assert len(run(find_slides([slides]), output, model, reference=reference).failures) == 1
    bad.write_bytes(whole)
    assert not run(find_slides([slides]), output, model, reference=reference).failures
    assert contents(output) == contents(finished)


def test_a_changed_slide_is_done_again(cohort: Path, model: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    images = cohort / "images"
    shutil.copy(images / "patient_000_node_0.tif", slides / "patient_000_node_0.tif")
    first = run(find_slides([slides]), tmp_path / "out", model).analyses[0]
    shutil.copy(images / "patient_000_node_1.tif", slides / "patient_000_node_0.tif")
    news = Silence()
    second = run(find_slides([slides]), tmp_path / "out", model, news=news).analyses[0]
    assert news.counted == {"patient_000_node_0"}
    assert first != second


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"threshold": 0.6}, "threshold: 0.5 -> 0.6"),
        ({"rule": SizeRule(smallest_um=50.0)}, "rule.smallest_um: 60.0 -> 50.0"),
    ],
)
def test_an_output_of_another_configuration_is_refused_untouched(
    change: dict[str, Any], named: str, finished: Path, cohort: Path, model: Path
) -> None:
    before = contents(finished)
    with pytest.raises(ConfigurationError, match=named):
        run(find_slides([cohort / "images"]), finished, model, config=configuration(model, **change))
    assert contents(finished) == before


def test_a_folder_of_something_else_is_refused(cohort: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigurationError, match=r"thesis\.tex"):
        run(find_slides([cohort / "images"]), tmp_path, model)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_run_on_the_same_output_is_refused(cohort: Path, model: Path, tmp_path: Path) -> None:
    script = f"import time; from pathlib import Path; from wsi.lock import OutputLock\nwith OutputLock(Path({str(tmp_path / 'out')!r})):\n    print('held', flush=True); time.sleep(60)"  # noqa: E501
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputInUseError):
            run(find_slides([cohort / "images"]), tmp_path / "out", model)
        other.kill()


def test_a_reference_that_lacks_a_patient_is_refused_before_anything_starts(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    table = tmp_path / "reference.csv"
    lines = (cohort / "stage_labels.csv").read_text().splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("patient_060")) + "\n")
    with pytest.raises(MissingPatientError, match="patient_060"):
        run(find_slides([cohort / "images"]), tmp_path / "out", model, reference=read_stage_table(table))
    assert not (tmp_path / "out").exists()


def test_too_many_failures_end_the_run(model: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for number in range(12):
        (slides / f"patient_00{number // 5}_node_{number % 5}.tif").write_bytes(b"not a slide")
    with pytest.raises(TooManyFailuresError, match="10 failed slides of 12"):
        run(find_slides([slides]), tmp_path / "out", model)


def test_a_model_swapped_under_the_run_is_fatal(cohort: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="changed"):
        run(find_slides([cohort / "images"]), tmp_path / "out", model, config=configuration(model, model="0" * 64))


def test_a_slide_without_resolution_is_quarantined_until_it_is_given(
    model: Path, tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    slides = find_slides([real_data("slides/boxes.tiff")])
    failure = run(slides, tmp_path / "a", model).failures[0]
    assert "--slide-mpp" in failure.reason
    given = configuration(model, mpp=16.0)
    assert run(slides, tmp_path / "b", model, config=given, upsample=True).failures == ()
