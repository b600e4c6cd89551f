"""What is recorded of each slide: what was not looked at, what rotted, what killed its process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from slide_files import forget_tiles
from small_run import MPP, Silence, configuration, contents, run

from staging.cohorts.camelyon import find_slides, read_stage_table
from staging.lesions.tables import read_seen
from staging.phantom import generate_cohort
from staging.runs.cohort import CohortResult
from staging.runs.deaths import mark_path
from wsi.cnn.checkpoint import save_checkpoint
from wsi.errors import StorageError

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
