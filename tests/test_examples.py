from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from staging.phantom import generate_cohort
from wsi.cnn.encoders.encoder import load_encoder

pytestmark = pytest.mark.slow  # its fixtures take seconds

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    generate_cohort(folder, patients=1, centres=(2,), seed=3, mpp=8.0)
    return folder


def printed(example: str, *arguments: Path) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / example, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text()
    assert all(f'"{path.name}"' in source for path in EXAMPLES.glob("*.py"))


def test_reading_a_slide(cohort: Path) -> None:
    text = printed("read_a_slide.py", cohort / "images" / "patient_040_node_0.tif")
    assert "one pixel is 16.0 um" in text
    assert float(re.findall(r"tissue ([0-9.]+) mm2", text)[0]) > 1


def test_a_mask_from_contours(cohort: Path) -> None:
    xml = max((cohort / "annotations").glob("*.xml"), key=lambda path: path.stat().st_size)
    text = printed("mask_from_contours.py", cohort / "images" / f"{xml.stem}.tif", xml)
    polygons, pixels = (float(area) for area in re.findall(r"([0-9.]+) mm2", text))
    assert polygons > 0
    assert pixels == pytest.approx(polygons, rel=0.05)


def test_staging_labels(cohort: Path) -> None:
    table = cohort / "stage_labels.csv"
    text = printed("stage_your_labels.py", table, table)
    stage = re.findall(r"patient_040\.zip,(.+)", table.read_text())[0]
    assert f"patient_040 {stage}" in text


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """A reference of four patients, and a submission that errs once."""
    stages = ["pN0", "pN1mi", "pN1", "pN2"]
    reference, submission = tmp_path / "reference.csv", tmp_path / "submission.csv"
    for path, found in ((reference, stages), (submission, ["pN0(i+)", *stages[1:]])):
        rows = [f"patient_{20 * number:03}.zip,{stage}" for number, stage in enumerate(found)]
        path.write_text("\n".join(["patient,stage", *rows, ""]))
    return reference, submission


def test_scoring_a_submission(tables: tuple[Path, Path], tmp_path: Path) -> None:
    text = printed("score_a_submission.py", *tables, tmp_path / "picture.png")
    assert "kappa 0.9286" in text
    assert "over 1 patients" in text
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_comparing_two_models(tables: tuple[Path, Path]) -> None:
    reference, submission = tables
    text = printed("compare_two_models.py", reference, submission, reference)
    assert "p_value: 1.0" in text
    assert "differing: 1" in text


def test_reading_many_patches(cohort: Path) -> None:
    text = printed("read_many_patches.py", cohort / "images" / "patient_040_node_0.tif")
    assert "200 patches" in text
    assert int(re.findall(r"JPEG of ([0-9]+) bytes", text)[0]) > 500


def test_tiles_with_dask(cohort: Path) -> None:
    text = printed("tiles_with_dask.py", cohort / "images" / "patient_040_node_0.tif", Path("16"))
    tiles, mean, darkest = re.findall(r"([0-9]+) tiles .* on 2 processes: mean ([0-9.]+)\n.*: mean ([0-9.]+)", text)[0]
    assert int(tiles) > 1
    assert 100 < float(darkest) <= float(mean) < 255


def test_the_page_about_dask_runs(cohort: Path, tmp_path: Path) -> None:
    page = (EXAMPLES.parent / "docs" / "dask.md").read_text(encoding="utf-8")
    script = tmp_path / "page.py"
    script.write_text("".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), encoding="utf-8")
    slide = cohort / "images" / "patient_040_node_0.tif"
    done = subprocess.run([sys.executable, script, slide], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\([0-9]+, [0-9]+, 3\) ", done.stdout)
    assert len(re.findall(r"^[0-9.-]+ [0-9.-]+ \[", done.stdout, re.MULTILINE)) > 1


def test_pictures_of_augmentations(cohort: Path, tmp_path: Path) -> None:
    text = printed("augmentations.py", cohort / "images" / "patient_040_node_0.tif", tmp_path, Path("8"))
    names = ("turns", "stain", "macenko", "focus", "brightness", "blur", "jpeg", "everything")
    assert [line.partition(":")[0] for line in text.splitlines()] == list(names)
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in names)


def test_training_on_real_patches(real_data: Callable[[str], Path]) -> None:
    text = printed("train_on_real_patches.py", real_data("patches"), Path("1"))
    assert "50 real patches of 2 slides" in text
    areas = [float(area) for area in re.findall(r"held out: AUC ([0-9.]+) on", text)]
    assert len(areas) == 2
    assert all(0 <= area <= 1 for area in areas)


def test_a_training_loop_of_ones_own(cohort: Path, tmp_path: Path) -> None:
    table = tmp_path / "patches.parquet"
    drawn = ("patches", cohort / "images", cohort / "annotations", "-r", cohort / "stage_labels.csv", "-o", table)
    options = ("--mpp", "8", "--size", "64", "--per-class", "40", "--workers", "1")
    done = subprocess.run(
        [sys.executable, "-m", "staging", *map(str, drawn), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text = printed("your_own_training_loop.py", table, Path("8"))
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", text)]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert "of 80 patches right" in text


def test_an_encoder_is_made_that_encodes(tmp_path: Path) -> None:
    target = tmp_path / "encoder.pt2"
    assert "224 px to 32 features" in printed("make_an_encoder.py", target)
    encoder = load_encoder(target, size_px=224, device="cpu")
    assert (encoder.kind, encoder.width) == ("torch.export", 32)
