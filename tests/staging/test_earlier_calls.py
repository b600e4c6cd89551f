"""Several calls of run into one output: slides are added, and with --overwrite only the run's own files go."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import configuration, contents, run

from staging.cohorts.camelyon import find_slides, read_stage_table
from staging.errors import ConfigurationError, MissingPatientError
from staging.phantom import generate_cohort
from wsi.cnn.checkpoint import save_checkpoint

pytestmark = pytest.mark.slow  # its fixtures take seconds


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic patient's five slides, and three slides that are none: their names are texts of a spreadsheet."""
    folder = tmp_path_factory.mktemp("cohort")
    generate_cohort(folder, patients=1, centres=(0,), seed=11, mpp=8.0, workers=1)
    for name in ("=bad", "patient_000_bad", "zbad"):
        (folder / "images" / f"{name}.tif").write_text("no slide, and a comma")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Any]) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.safetensors"
    save_checkpoint(path, make_checkpoint(mpp=8.0, seed=3))
    return path


@pytest.fixture(scope="module")
def whole(cohort: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    reference = read_stage_table(cohort / "stage_labels.csv")
    assert len(run(find_slides([cohort / "images"]), output, model, reference=reference).failures) == 3
    return output


@pytest.mark.parametrize("order", [1, -1])
def test_two_halves_of_a_cohort_give_the_bytes_of_the_whole(
    order: int, whole: Path, cohort: Path, model: Path, tmp_path: Path
) -> None:
    slides = find_slides([cohort / "images"])
    halves = [slides[:3], slides[3:]][::order]
    reference = read_stage_table(cohort / "stage_labels.csv")
    assert run(halves[0], tmp_path, model, reference=reference).earlier == ()
    result = run(halves[1], tmp_path, model, reference=reference)
    assert result.earlier == tuple(sorted(slide.name for slide in halves[0]))
    assert result.to_json()["earlier"] == len(halves[0])
    assert contents(tmp_path) == contents(whole)


def test_a_changed_slide_of_an_earlier_call_is_quarantined_until_it_is_given_again(
    whole: Path, cohort: Path, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    slides = [slide for slide in find_slides([cohort / "images"]) if "node" in slide.name]
    changed = output / "overlays" / f"{slides[0].name}.png"
    changed.write_bytes(changed.read_bytes()[:-1])
    reference = read_stage_table(cohort / "stage_labels.csv")
    result = run(slides[1:], output, model, reference=reference)
    failure = next(one for one in result.failures if one.slide == slides[0].name)
    assert failure.step == "record"
    assert "has another size" in failure.reason
    assert not result.staging.stages
    run(slides[:1], output, model, reference=reference)
    assert contents(output) == contents(whole)


def test_a_slide_that_failed_since_is_not_labelled_by_what_was_found_before(
    cohort: Path, model: Path, tmp_path: Path
) -> None:
    first, second = (tmp_path / f"patient_000_node_{node}.tif" for node in (0, 1))
    for path in (first, second):
        shutil.copy(cohort / "images" / path.name, path)
    output = tmp_path / "out"
    assert len(run(find_slides([first]), output, model).analyses) == 1
    first.write_bytes(first.read_bytes()[:5000])
    assert [failure.slide for failure in run(find_slides([first]), output, model).failures] == [first.stem]
    result = run(find_slides([second]), output, model)
    assert [failure.slide for failure in result.failures] == [first.stem]
    assert first.stem not in (output / "labels.csv").read_text()


def test_a_quarantined_slide_whose_file_is_gone_is_dropped(cohort: Path, model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_text("no slide")
    output = tmp_path / "out"
    assert len(run(find_slides([bad]), output, model).failures) == 1
    slides = find_slides([cohort / "images" / "patient_000_node_0.tif"])
    assert [failure.slide for failure in run(slides, output, model).failures] == ["bad"]
    bad.unlink()
    assert run(slides, output, model).failures == ()


def test_the_reference_must_have_the_patients_of_earlier_calls(
    whole: Path, model: Path, cohort: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    table = tmp_path / "stages.csv"
    table.write_text("patient,stage\npatient_009.zip,pN0\n")
    slide = tmp_path / "patient_009_node_0.tif"
    shutil.copy(cohort / "images" / "patient_000_node_0.tif", slide)
    before = contents(output)
    with pytest.raises(MissingPatientError, match="patient_000"):
        run(find_slides([slide]), output, model, reference=read_stage_table(table))
    assert contents(output) == before


def test_with_overwrite_other_settings_replace_what_the_run_made_and_nothing_else(
    whole: Path, cohort: Path, model: Path, tmp_path: Path
) -> None:
    output, slides = tmp_path / "out", find_slides([cohort / "images" / "patient_000_node_0.tif"])
    shutil.copytree(whole, output)
    (output / "lesions" / "mine.xml").write_text("mine")
    (output / "heatmaps" / "mine.zarr").mkdir()
    before = contents(output)
    with pytest.raises(ConfigurationError, match=r"peak.*--overwrite"):
        run(slides, output, model, config=configuration(model, peak=0.5))
    assert contents(output) == before
    run(slides, output, model, config=configuration(model, peak=0.5), overwrite=True)
    after = contents(output)
    assert (output / "heatmaps" / "mine.zarr").is_dir()
    assert after.pop("lesions/mine.xml") == b"mine"
    run(slides, tmp_path / "fresh", model, config=configuration(model, peak=0.5))
    assert after == contents(tmp_path / "fresh")
