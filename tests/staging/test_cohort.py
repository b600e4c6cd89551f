from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from slide_files import forget_tiles

from staging.cohorts.camelyon import SlideFile, find_slides, read_stage_table
from staging.errors import ConfigurationError, MissingPatientError, TooManyFailuresError
from staging.lesions.finding import find_lesions
from staging.lesions.labels import SizeRule
from staging.lesions.settings import peak_of, settings_of, with_peak
from staging.lesions.tables import read_seen
from staging.phantom import generate_cohort
from staging.runs.cohort import CohortResult, run_cohort
from staging.runs.config import RunConfig
from staging.runs.deaths import mark_path
from staging.training.peak import calibrate_peak
from wsi.cnn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from wsi.cnn.inference import infer
from wsi.errors import CheckpointError, OutputInUseError, StorageError
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide
from wsi.tissue import find_tissue

pytestmark = pytest.mark.slow  # its fixtures take seconds

MPP = 8.0


class Silence:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self.counted: set[str] = set()

    def tiles(self, slide: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.counted.add(slide)

    def slide(self, name: str, outcome: str = "") -> None:
        self.ended.append((name, outcome))


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


def configuration(path: Path, **changes: Any) -> RunConfig:
    return RunConfig(**{"model": load_checkpoint(path).digest, "threshold": 0.5, "peak": 0.9, **changes})


def run(slides: Sequence[SlideFile], output: Path, model: Path, **options: Any) -> CohortResult:
    options.setdefault("config", configuration(model))
    options.setdefault("news", Silence())
    return run_cohort(slides, output, model=model, device="cpu", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


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


def heatmap_of(slide: SlideFile, model: Path) -> Heatmap:
    with Slide.open(slide.path) as opened:
        return infer(opened, load_checkpoint(model), tissue=find_tissue(opened), device="cpu", workers=1)


def just_below(peak: float) -> float:
    return float(np.nextafter(np.float32(peak), np.float32(0)))


def test_at_the_learnt_peak_no_lesion_of_the_negative_slide_survives(cohort: Path, model: Path) -> None:
    """Each slide on its own: a peak that were rounded would keep its lesion on every second one."""
    slides = find_slides([cohort / "images"])
    for slide in slides:
        peak, heatmap = calibrate_peak([slide], model, smallest_um=0.0), heatmap_of(slide, model)
        assert 0.5 < peak < 1
        assert find_lesions(heatmap, threshold=0.5, peak=peak)[0] == ()
        assert find_lesions(heatmap, threshold=0.5, peak=just_below(peak))[0] != ()
        # as float32, too: NumPy compares a heatmap with a number in the heatmap's type
        assert not (heatmap.array >= peak).any()
    assert len(slides) == 10


def test_the_learnt_peak_is_the_same_in_the_checkpoint_the_configuration_and_the_run(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    slides = find_slides([cohort / "images"])[:4]
    peak = calibrate_peak(slides, model, smallest_um=60.0, workers=2)
    assert peak == max(calibrate_peak([slide], model, smallest_um=60.0) for slide in slides)
    checkpoint = load_checkpoint(model)
    learnt = tmp_path / "learnt.safetensors"
    save_checkpoint(learnt, replace(checkpoint, provenance=with_peak(checkpoint.provenance, peak)))
    assert peak_of(load_checkpoint(learnt).provenance) == peak
    for name, limit, expected in (("at", peak, False), ("below", just_below(peak), True)):
        result = run(slides, tmp_path / name, learnt, config=configuration(learnt, peak=limit))
        assert any(analysis.lesions for analysis in result.analyses) is expected
        assert json.loads((tmp_path / name / "run.json").read_text())["peak"] == limit
        heatmap = next((tmp_path / name / "heatmaps").iterdir())
        assert settings_of(heatmap, options={}).peak.value == limit


@pytest.mark.parametrize(("highest", "expected"), [(0.0, 0.5), (0.3, 0.5), (1.0, 1.0)])
def test_the_learnt_peak_lets_some_tumour_through(
    cohort: Path, model: Path, monkeypatch: pytest.MonkeyPatch, highest: float, expected: float
) -> None:
    """Where even a false lesion is certain, no peak is of use that is higher than every probability."""

    def certain(_slide: Slide, _model: Checkpoint, *, tissue: Mask, **_: Any) -> Heatmap:
        values = np.where(tissue.array, np.float32(highest), np.float32(0))
        return Heatmap(frame=tissue.frame, array=values, tissue=tissue.array)

    monkeypatch.setattr("wsi.cnn.inference.infer", certain)
    assert calibrate_peak(find_slides([cohort / "images"])[:1], model, smallest_um=0.0) == expected


def a_slide_without_its_finest_tiles(cohort: Path, folder: Path) -> Path:
    """A macro-metastasis whose overview is intact, while not one tile of level 0 is stored."""
    folder.mkdir()
    truth = read_stage_table(cohort / "stage_labels.csv")
    name = next(slide for slide, label in truth.labels.items() if label.value == "macro")
    path = folder / f"{name}.tif"
    shutil.copy(cohort / "images" / path.name, path)
    forget_tiles(path)
    return path


def test_what_was_not_looked_at_is_never_negative(cohort: Path, model: Path, tmp_path: Path) -> None:
    slide = a_slide_without_its_finest_tiles(cohort, tmp_path / "slides")
    found = run(find_slides([slide]), tmp_path / "out", model, config=configuration(model, nodes=1))
    (failure,) = found.failures
    assert failure.step == "coverage"
    assert "only 0.00 of" in failure.reason
    assert "missing tiles under tissue" in failure.reason
    assert not found.staging.stages
    assert slide.stem not in (tmp_path / "out" / "labels.csv").read_text()
    assert "only 0.00 of" in (tmp_path / "out" / "quarantine.csv").read_text()


def test_a_partial_slide_is_labelled_on_demand_and_says_so_everywhere(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    slide = a_slide_without_its_finest_tiles(cohort, tmp_path / "slides")
    output = tmp_path / "out"
    config = configuration(model, allow_partial=True, nodes=1)
    renamed = slide.rename(slide.with_name("patient_000_node_0.tif"))
    found = run(find_slides([renamed]), output, model, config=config)
    assert not found.failures
    assert found.staging.at_least == {"patient_000"}
    header, row = (line.split(",") for line in (output / "labels.csv").read_text().splitlines())
    assert dict(zip(header, row, strict=True))["seen"] == "partial"
    assert float(dict(zip(header, row, strict=True))["looked_mm2"]) == 0
    seen = read_seen(output / "labels.csv")
    assert {slide for slide, one in seen.items() if one.seen == "partial"} == {"patient_000_node_0"}
    assert (output / "at_least.csv").read_text() == "patient,stage\npatient_000,at least pN0\n"
    report = (output / "report.html").read_text()
    assert "at least <b>pN0</b>" in report
    assert "partly seen: 0.00 of" in report
    again = run(find_slides([renamed]), output, model, config=config)
    assert again == found


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def copied(finished: Path, cohort: Path, model: Path, tmp_path: Path) -> tuple[Path, Callable[..., CohortResult]]:
    """A copy of a finished run, and how it is called again."""
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    reference = read_stage_table(cohort / "stage_labels.csv")
    return output, partial(run, find_slides([cohort / "images"]), output, model, reference=reference)


@pytest.mark.parametrize(
    ("path", "how", "told"),
    [
        ("heatmaps/*.zarr/probability/c/*/*", flip, "was changed since"),
        ("heatmaps/*.zarr/probability/c/*/*", Path.unlink, "is missing since"),
        ("heatmaps/*.zarr/DONE.json", flip, "has no readable"),
        ("heatmaps/*.zarr/DONE.json", Path.unlink, "has no readable"),
        ("heatmaps/*.zarr", shutil.rmtree, "has no readable"),
        ("overlays/*.png", lambda path: path.write_bytes(b""), "has another size"),
        ("lesions/*.geojson", flip, "was changed"),
        ("lesions/*.xml", Path.unlink, "is missing"),
        ("slides/*.json", flip, "slides/"),
        ("slides/*.json", lambda path: path.write_text("[" * 100_000), "is malformed"),
    ],
)
def test_what_rotted_is_made_again_and_told(
    path: str, how: Callable[[Path], Any], told: str, copied: tuple[Path, Callable[..., CohortResult]], finished: Path
) -> None:
    output, run_again = copied
    how(min(output.glob(path)))
    (output / "heatmaps" / ".DS_Store").write_text("x")
    news = Silence()
    found = run_again(news=news)
    assert not found.failures
    (again,) = (one for one in found.analyses if one.remade)
    assert told in "; ".join(again.remade)
    assert any("made again" in outcome for _, outcome in news.ended)
    (output / "heatmaps" / ".DS_Store").unlink()
    assert contents(output) == contents(finished)


def test_a_broken_heatmap_without_a_record_is_made_again(
    copied: tuple[Path, Callable[..., CohortResult]], finished: Path
) -> None:
    output, run_again = copied
    flip(min(output.glob("heatmaps/*.zarr/probability/c/*/*")))
    min((output / "slides").iterdir()).unlink()
    assert not run_again().failures
    assert contents(output) == contents(finished)


def test_sizes_alone_are_compared_on_demand(copied: tuple[Path, Callable[..., CohortResult]]) -> None:
    output, run_again = copied
    flip(min(output.glob("overlays/*.png")))
    assert not any(one.remade for one in run_again(digests=False).analyses)
    assert any(one.remade for one in run_again(digests=True).analyses)


def test_an_output_that_is_removed_midway_ends_the_run(cohort: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"

    class Removing(Silence):
        def slide(self, name: str, outcome: str = "") -> None:
            super().slide(name, outcome)
            if len(self.ended) == 2:
                shutil.rmtree(output)

    with pytest.raises(StorageError, match="removed or replaced"):
        run(find_slides([cohort / "images"]), output, model, news=Removing())


DEADLY = """
import os, signal, wsi.tissue
find_tissue = wsi.tissue.find_tissue
def find_or_die(slide, **options):
    if slide.name == "patient_000_node_2":
        os.kill(os.getpid(), signal.SIGKILL)
    return find_tissue(slide, **options)
wsi.tissue.find_tissue = find_or_die
"""


def test_a_slide_that_kills_its_process_is_tried_alone_by_the_next_call_and_quarantined(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    deadly, output = tmp_path / "deadly", tmp_path / "out"
    deadly.mkdir()
    (deadly / "sitecustomize.py").write_text(DEADLY)
    root = str(Path(__file__).parents[2])

    def call(*folders: str) -> subprocess.CompletedProcess[str]:
        arguments = [str(cohort / "images"), "-o", str(output), "-m", str(model), "--workers", "1", "--device", "cpu"]
        arguments += ["--reference", str(cohort / "stage_labels.csv"), "--peak", "0.9", "--smallest-um", "0"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, root])}
        command = [sys.executable, "-m", "staging", "run", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert call(str(deadly)).returncode == -signal.SIGKILL
    assert mark_path(output / "slides", "patient_000_node_2").exists()
    second = call(str(deadly))
    assert second.returncode == 3, second.stderr
    (row,) = (output / "quarantine.csv").read_text().splitlines()[1:]
    assert row.startswith("patient_000_node_2,")
    assert "its process died" in row
    mended = call()
    assert mended.returncode == 0, mended.stderr
    assert not list((output / "slides").glob(".*"))
    assert len(list((output / "slides").iterdir())) == 10


@pytest.mark.parametrize("name", ["x" * 245, "a\nb\x1b[31m", "caf\udce9"])
def test_a_name_that_no_artefact_can_have_ends_its_slide_alone(
    name: str, cohort: Path, model: Path, tmp_path: Path
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    shutil.copy(cohort / "images" / "patient_000_node_0.tif", slides)
    shutil.copy(cohort / "images" / "patient_000_node_1.tif", slides / f"{name}.tif")
    news = Silence()
    found = run(find_slides([slides]), tmp_path / "out", model, news=news)
    assert [one.slide for one in found.analyses] == ["patient_000_node_0"]
    (failure,) = found.failures
    assert failure.step == "name"
    table = (tmp_path / "out" / "quarantine.csv").read_text(encoding="utf-8")
    for text in (
        table,
        (tmp_path / "out" / "report.html").read_text(encoding="utf-8"),
        *(one for one, _ in news.ended),
    ):
        assert "\x1b" not in text
        assert "a\nb" not in text
    assert len(table.splitlines()) == 2
